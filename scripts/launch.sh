# shellcheck shell=bash
# Sourced by torchrun.sh, slurm.sh, kubernetes.sh and ray.sh: their options, and sending or, with --dry-run, printing.
# Who sources it declares `option`, its flags with their defaults, and calls `read_arguments "$@"`.

commands="run generate batch calibrate tune doctor"
dry_run=false
command=() # COMMAND with its own options

fail() {
  echo "${0##*/}: error: $1" >&2
  exit 2
}

((BASH_VERSINFO[0] * 10 + BASH_VERSINFO[1] >= 44)) || fail "bash $BASH_VERSION is too old; 4.4 or newer is needed"

if [[ -z ${VIRTUAL_ENV-} && -f .venv/bin/activate ]]; then
  # shellcheck source=/dev/null
  . .venv/bin/activate
fi

# The comment at the top of the script is its help.
print_help() {
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
}

read_arguments() {
  while [[ ${1-} == -* ]]; do
    case $1 in
      -h | --help) print_help && exit ;;
      --dry-run) dry_run=true && shift ;;
      *) read_option "$@" && shift 2 ;;
    esac
  done
  read_command "$@"
  check_numbers --ranks --nodes --cores
  check_command
}

# Nobody who writes --dry-run behind COMMAND wants it sent.
read_command() {
  local word
  for word in "$@"; do
    if [[ $word == --dry-run ]]; then dry_run=true; else command+=("$word"); fi
  done
}

read_option() {
  [[ -n ${option[$1]+known} ]] || fail "unknown option $1; options: ${!option[*]} --dry-run --help, then COMMAND"
  [[ $# -gt 1 && $2 != -* && -n $2 ]] || fail "$1 needs a value"
  option[$1]=$2
}

check_numbers() {
  local name
  for name in "$@"; do
    [[ ${option[$name]-1} =~ ^[1-9][0-9]*$ ]] || fail "$name ${option[$name]} is not possible; give 1 or more"
  done
}

check_command() {
  local given=${command[0]-}
  [[ -n $given ]] || fail "no COMMAND; give one of: $commands (--help shows how)"
  [[ " $commands " == *" $given "* ]] || fail "unknown command '$given'; commands: $commands"
  [[ $given != batch || ${command[1]-} == run ]] || fail "of batch, only 'batch run' needs a launcher"
}

# GPUs of each node: one for each rank unless --gpus says otherwise (0 on a cluster without).
gpus() {
  local number=${option[--gpus]:-${option[--ranks]}}
  [[ $number =~ ^[0-9]+$ ]] || fail "--gpus $number is not possible; give 0 or more"
  echo "$number"
}

# require TOOL ADVICE: what sends must be there; printing needs nothing.
require() {
  $dry_run || command -v "$1" > /dev/null || fail "$1 is not on this machine: $2; --dry-run shows what would be sent"
}

# Words of a command line, each quoted where a shell would change it.
quoted() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

# Become the command given, or print it.
send() {
  $dry_run || exec "$@"
  quoted "$@"
}

# Give the command the document on standard input, or print both.
send_document() {
  $dry_run || exec "$@"
  echo "$(quoted "$@") << 'END'"
  cat
  echo "END"
}
