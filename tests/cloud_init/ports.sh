# A guest with a web server of its own, in namespaces. $1 is the agent, $2 a folder with the host's
# socket. What is seen is printed, a line each.
set -eu
agent=$1 folder=$2
ip link set lo up
ip address add 10.9.0.1/24 dev lo

# Starts an agent by the words in front of it, and waits until the service is there, or is not.
start() {
    : >"$folder/log"
    "$@" "$agent" --config /dev/null --plain --listen "unix:$folder/agent.sock" \
        --guest-socket off --host "unix:$folder/host.sock" --metadata ec2 >"$folder/log" 2>&1 &
    id=$!
    until grep -q -e 'serving metadata' -e 'cannot serve metadata' "$folder/log"; do sleep 0.1; done
}
stop() {
    kill "$1"
    wait "$1" || true
}
server() {
    echo hello >"$folder/hello"
    : >"$folder/server.log"
    /usr/bin/python3 - "$1" "$folder" >"$folder/server.log" 2>&1 <<'PYTHON' &
import functools, http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[2])
server = Server((sys.argv[1], 80), handler)
print("listening", flush=True)
server.serve_forever()
PYTHON
    server=$!
    until grep -q -e listening -e Error "$folder/server.log"; do sleep 0.1; done
}
ask() {
    /usr/bin/python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode().strip())' "$1" 2>&1 | tail -1
}
metadata() {
    ask http://169.254.169.254/latest/meta-data/instance-id
}
is_left() {
    grep -q 'cannot leave the port' "$folder/log" && echo no || echo yes
}

start env
echo "left to other programs: $(is_left)"
for address in 0.0.0.0 ::; do
    server "$address"
    echo "server on $address: $(ask http://10.9.0.1/hello), metadata: $(metadata)"
    stop "$server"
done
stop "$id"

# An agent that may not use BPF, as under lockdown.
server 0.0.0.0
start setpriv --bounding-set=-sys_admin,-bpf
grep -q 'cannot serve metadata' "$folder/log" && echo "without bpf, a server is first: not served"
stop "$server"
until grep -q 'serving metadata' "$folder/log"; do sleep 0.1; done
echo "the server has gone: $(metadata)"
echo "left to other programs: $(is_left)"
stop "$id"
