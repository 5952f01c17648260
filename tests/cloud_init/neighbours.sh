# A guest and another machine on one wire, in namespaces. $1 is the agent, $2 a folder with the
# host's socket. What is seen is printed, a line each.
set -eu
agent=$1 folder=$2
mount -t tmpfs tmpfs /run
ip netns add other
ip link set lo up
ip link add wire type veth peer name wire netns other
ip address add 10.9.0.1/24 dev wire
ip link set wire up
ip -n other address add 10.9.0.2/24 dev wire
ip -n other link set lo up
ip -n other link set wire up

# Starts an agent, and waits until the service is there, or is not going to be.
start() {
    : >"$folder/log"
    "$agent" --config /dev/null --plain --listen "unix:$folder/agent.sock" --guest-socket off \
        --host "unix:$folder/host.sock" --metadata ec2 --metadata-all-users >"$folder/log" 2>&1 &
    id=$!
    until grep -q -e 'serving metadata' -e 'cannot serve metadata' "$folder/log"; do sleep 0.1; done
}
stop() {
    kill "$id"
    wait "$id"
}
has_address() {
    ip -brief address show lo | grep -q 169.254.169.254 && echo yes || echo no
}
ask() {
    "$@" /usr/bin/python3 -c 'import urllib.request as u; print(u.urlopen("http://169.254.169.254/latest/meta-data/instance-id", timeout=10).read().decode())' \
        2>"$folder/error" || grep -o -e 'Connection refused' -e 'timed out' "$folder/error" | tail -1
}

ip -n other route add 169.254.169.254 via 10.9.0.1
start
echo "guest asks: $(ask env)"
echo "neighbour asks: $(ask ip netns exec other)"
echo "address: $(has_address)"
stop
echo "address afterwards: $(has_address)"

# An agent that was killed leaves the address.
start
kill -KILL "$id"
wait "$id" || true
echo "address of a dead agent: $(has_address)"
start
echo "guest asks the next: $(ask env)"
stop
echo "address in the end: $(has_address)"

# Now it is the other's.
ip -n other route delete 169.254.169.254
ip -n other address add 169.254.169.254/32 dev lo
ip route add 169.254.169.254 via 10.9.0.2
start
grep -o 'is in use by another machine' "$folder/log"
echo "address of another: $(has_address)"
stop
