# CPU image: docker build -f docker/cpu.Dockerfile -t fastcache-xdit:cpu . && docker run fastcache-xdit:cpu
FROM python:3.11-slim
WORKDIR /opt/fastcache_xdit
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY . .
RUN pip install --no-cache-dir .
ENV OMP_NUM_THREADS=1
CMD ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "fastcache_xdit", "generate", "--config", "configs/quickstart.yaml"]
