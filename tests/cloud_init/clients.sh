# Programs that ask Amazon's metadata service, in namespaces. $1 is the agent, $2 a folder with the
# host's socket, $3 one with the programs, as in /. What they say is printed.
set -eu
agent=$1 folder=$2 layer=$3
ip link set lo up
"$agent" --config /dev/null --plain --listen "unix:$folder/agent.sock" --guest-socket off \
    --host "unix:$folder/host.sock" --metadata ec2 --metadata-token >"$folder/log" 2>&1 &
until grep -q -e 'serving metadata' -e 'cannot serve metadata' "$folder/log"; do sleep 0.1; done
export PATH="$layer/usr/bin:$PATH" PYTHONPATH="$layer/usr/lib/python3/dist-packages"
export LD_LIBRARY_PATH="$layer/usr/lib/$(uname -m)-linux-gnu"

echo "botocore: $(/usr/bin/python3 -W ignore -c 'from botocore.utils import InstanceMetadataRegionFetcher as F; print(F(timeout=10).retrieve_region())')"
ec2metadata | sed 's/^/debian: /'
ec2-metadata | sed 's/^/amazon: /'
ec2-metadata -e | sed "s,^,with two slashes: ,"
