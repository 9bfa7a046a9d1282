#!/usr/bin/env bash
# Applies an indexed Kubernetes Job for a command; each pod starts its ranks with scripts/torchrun.sh.
#
#   bash scripts/kubernetes.sh --image IMAGE [options] COMMAND [its options]
#
#   --image IMAGE         built from docker/Dockerfile.cuda or Dockerfile.cpu, where the cluster can pull it
#   --nodes N, --ranks N  default 1; pods, and ranks in each
#   --gpus N              per pod; default: one for each rank
#   --cores N             CPU cores of each rank; default 4
#   --claim NAME          volume claim for results/ and downloaded models; default: gone with the pod
#   --job NAME            default fastcache
#   --dry-run             print what would be applied
#
# For example:
#   bash scripts/kubernetes.sh --image registry.example.org/fastcache-xdit:cuda --ranks 8 --claim results \
#       generate --config configs/models/flux1-dev.yaml --prompt "a lighthouse in a storm"
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh

declare -A option=([--image]="" [--ranks]=1 [--nodes]=1 [--gpus]="" [--cores]=4 [--claim]="" [--job]=fastcache)
read_arguments "$@"
[[ -n ${option[--image]} ]] || fail "no image; give --image IMAGE, built from docker/Dockerfile.cuda"
name=${option[--job]}
[[ $name =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]] || fail "--job $name is no Kubernetes name; use a-z, 0-9 and -"
require kubectl "apply from a machine that reaches the cluster"

# Words as a YAML list; Kubernetes would replace $(NAME), which $$(NAME) prevents.
yaml_list() {
  local word words=()
  for word in "$@"; do
    word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//\$\(/\$\$\(}
    words+=("\"$word\"")
  done
  local IFS=,
  echo "[${words[*]}]"
}

volume="emptyDir: {}"
[[ -z ${option[--claim]} ]] || volume="persistentVolumeClaim: {claimName: ${option[--claim]}}"
devices=$(gpus)
limits="cpu: $((option[--cores] * option[--ranks]))"
[[ $devices == 0 ]] || limits+=", nvidia.com/gpu: $devices"
retries=0
[[ ${command[0]} != batch ]] || retries=10 # it goes on where it was
start=(bash scripts/torchrun.sh --nodes "${option[--nodes]}" --ranks "${option[--ranks]}"
  --rendezvous "$name-0.$name:29500" --job "$name" "${command[@]}")

send_document kubectl apply --filename - << END
apiVersion: v1
kind: Service
metadata: {name: $name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true  # ranks meet before any pod is ready
  selector: {job-name: $name}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $name}
spec:
  completionMode: Indexed
  completions: ${option[--nodes]}
  parallelism: ${option[--nodes]}
  backoffLimit: $retries
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      securityContext: {runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001}
      containers:
        - name: ranks
          image: ${option[--image]}
          command: $(yaml_list "${start[@]}")
          resources: {limits: {$limits}}
          volumeMounts:
            - {name: files, subPath: results, mountPath: /opt/fastcache_xdit/results}
            - {name: files, subPath: models, mountPath: /opt/fastcache_xdit/models}
            - {name: shared-memory, mountPath: /dev/shm}
      volumes:
        - name: files
          $volume
        - name: shared-memory
          emptyDir: {medium: Memory}
END
