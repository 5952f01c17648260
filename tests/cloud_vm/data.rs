//! What the host has for a machine, and a look at whether it arrived.

use harness::{TestVm, vm::MAC};

use crate::{in_guest, set};

/// Made for these tests; nobody has the other half.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIv3lFxwAUR2CxcEgX5kVQXyYcWvSmM9KqZ9gTqHqyV1 lab";

/// What the machine's network card becomes.
pub(crate) const NIC: &str = "lab0";

/// A program of the guest that asks the socket for each of its arguments, and prints
/// statuses and bodies as JSON.
pub(crate) const ASK: &str = "
import http.client, json, socket, sys

def get(path):
    connection = http.client.HTTPConnection('lxd')
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect('/dev/lxd/sock')
    connection.request('GET', path)
    reply = connection.getresponse()
    return [reply.status, reply.read().decode()]

print(json.dumps([get(path) for path in sys.argv[1:]]))
";

/// User-data for a machine with this host name. Debian's cloud-init cannot make the locale that it
/// wants by itself.
pub(crate) fn user_data(hostname: &str) -> String {
    format!(
        "#cloud-config
locale: C.UTF-8
hostname: {hostname}
users:
- default
- name: ada
  gecos: Ada Lövelace
  shell: /bin/bash
  ssh_authorized_keys: [\"{KEY}\"]
write_files:
- path: /etc/lab-file
  content: \"größe ☃ €5\\n\"
  permissions: '0640'
runcmd:
- [sh, -c, 'echo {hostname} >> /root/runs']
"
    )
}

/// Network configuration that names the machine's card [`NIC`].
pub(crate) fn network_config() -> String {
    format!(
        "version: 2
ethernets:
  {NIC}:
    match: {{macaddress: \"{MAC}\"}}
    set-name: {NIC}
    addresses: [10.0.2.77/24]
"
    )
}

/// Gives the host what it hands out.
pub(crate) async fn give(vm: &TestVm, hostname: &str) {
    set(vm, "cloud-init.user-data", &user_data(hostname)).await;
    set(vm, "cloud-init.network-config", &network_config()).await;
}

/// Checks that the machine is what [`give`] said for each of `hostnames`, one after the other.
pub(crate) async fn assert_applied(vm: &TestVm, hostnames: &[&str]) {
    let last = *hostnames.last().unwrap();
    assert_eq!(in_guest(vm, "hostname").await, last);
    assert_eq!(in_guest(vm, "cat /root/runs").await, hostnames.join("\n"));
    let user = in_guest(vm, "getent passwd ada").await;
    assert!(user.contains(":Ada Lövelace:/home/ada:/bin/bash"), "{user}");
    let key = in_guest(vm, "cat /home/ada/.ssh/authorized_keys").await;
    assert_eq!(key, KEY);
    let file = in_guest(vm, "stat -c %a /etc/lab-file; cat /etc/lab-file").await;
    assert_eq!(file, "640\ngröße ☃ €5");
    let address = in_guest(vm, &format!("ip -br -4 address show {NIC}")).await;
    assert!(
        address.contains("UP") && address.contains(" 10.0.2.77/24"),
        "{address}"
    );
}
