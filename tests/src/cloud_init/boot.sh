# A boot, in the order of systemd's units. What becomes of it is left in /run/host/out.
out=/run/host/out
exec >"$out/log" 2>&1
set -x

# As systemd does before any unit.
hostname "$(cat /etc/hostname)"
/usr/lib/systemd/system-generators/cloud-init-generator /run/generator /run/generator /run/generator
cp -r /run/cloud-init "$out/generated"

# The agent, until it is ready.
if [ -e /run/host/agent ]; then
    /usr/bin/python3 - <<'PYTHON' || exit
import os, socket, subprocess
notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notices.bind("/run/notify")
notices.settimeout(60)
with open("/run/host/agent") as arguments:
    command = ["vsock-agent"] + arguments.read().splitlines()
environment = dict(os.environ, NOTIFY_SOCKET="/run/notify")
log = open("/run/host/out/agent.log", "w")
subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
assert notices.recv(100) == b"READY=1"
PYTHON
fi
ip -brief address >"$out/addresses"

mkdir /run/dhcp
touch /run/dhcp/leases
cat >/run/dhcp/conf <<'DHCP'
start 10.9.0.20
end 10.9.0.30
max_leases 11
interface dhcp0
lease_file /run/dhcp/leases
pidfile /run/dhcp/pid
opt subnet 255.255.255.0
opt lease 600
DHCP
busybox udhcpd -f /run/dhcp/conf &

if [ -e /run/cloud-init/enabled ]; then
    for stage in "init --local" "init" "modules --mode=config" "modules --mode=final"; do
        # shellcheck disable=SC2086 # words
        timeout 200 cloud-init $stage
        echo "$stage: $?" >>"$out/stages"
    done
fi
timeout 60 cloud-init status >"$out/status"
# The file of that name is lost in 22.4.2 when a datasource is found twice.
cloud-id >"$out/cloud-id"
hostname >"$out/hostname"
cp -rL /run/cloud-init "$out/run"
cp /var/log/cloud-init.log "$out/cloud-init.log"

touch "$out/end"
