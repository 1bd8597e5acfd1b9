# What a reader's terminal is to the commands of a page. Sourced before them; the folder that they are
# run in is the working directory, and these are set: CHANDLER (the binary), PORT_OF_PAGE, PORT_OF_SERVE.
set -euo pipefail

# Processes that run until they are stopped, as those in a reader's other terminals do.
others=()

# The value of an argument: of --dir in `--dir my-model`.
value_of() {
  local wanted="$1" before=""
  shift
  for word in "$@"; do
    if [ "$before" = "$wanted" ]; then echo "$word"; fi
    before="$word"
  done
}

# Waits until a command succeeds, for two minutes at most.
until_it_is_so() {
  for _ in $(seq 1200); do
    if "$@" > /dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "never came true: $*" >&2
  cat ./*.log >&2
  return 1
}

is_at_work() { "$CHANDLER" status --dir "$1" --json | grep -q '"pid":'; }

has_learned() { "$CHANDLER" status --dir "$1" --json | tr -d ' \n' | grep -q '"queued":0,"running":0,"done":[1-9]'; }

# What was added has been learned, as a reader who comes back later finds it.
come_back_later() {
  for dir in "${at_work[@]}"; do until_it_is_so has_learned "$dir"; done
}

at_work=()

chandler() {
  case "$1" in
    run)
      local dir
      dir="$(value_of --dir "$@")"
      dir="${dir:-chandler-state}"
      "$CHANDLER" "$@" --set http.port="$PORT_OF_PAGE" < /dev/null > "$(basename "$dir").log" 2>&1 & others+=($!)
      until_it_is_so is_at_work "$dir"
      at_work+=("$dir")
      ;;
    serve)
      "$CHANDLER" "$@" --port "$PORT_OF_SERVE" < /dev/null > serve.log 2>&1 & others+=($!)
      until_it_is_so grep -q '^key' serve.log
      KEY="$(sed -n 's/^key *//p' serve.log)"
      export KEY
      ;;
    chat)
      come_back_later
      echo "Where is the key?" | "$CHANDLER" "$@"
      ;;
    add) "$CHANDLER" "$@" ;;
    generate | export)
      come_back_later
      "$CHANDLER" "$@"
      ;;
    *) "$CHANDLER" "$@" < /dev/null ;;
  esac
}

# The checkout's own commands are run by CI as they stand; here the binary is there already.
cargo() {
  case "$*" in
    "install --locked --path cli") ;;
    "run --release -- "*) shift 3 && chandler "$@" ;;
    *) echo "this page's cargo $* is not run here" >&2 && return 1 ;;
  esac
}

end_others() {
  local code=$?
  for other in "${others[@]}"; do kill -TERM "$other" 2> /dev/null || true; done
  for other in "${others[@]}"; do
    if ! wait "$other" && [ $code = 0 ]; then
      echo "what runs until it is stopped did not end well" >&2
      cat ./*.log >&2
      code=1
    fi
  done
  exit $code
}
trap end_others EXIT
