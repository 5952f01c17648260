//! cloud-init reads from `/dev/lxd/sock`.

use crate::{
    Source, assert_sound, boot, configured,
    data::{assert_applied, give, user_data},
    in_guest, is_kicked, machine, power_off, run, set,
};

/// How many keys a machine has at most here, beside cloud-init's own.
const KEYS: usize = 1000;

/// The size of large user-data.
const MEBIBYTE: usize = 1 << 20;

/// Prints how many of the values that [`many_keys`] gives are there, each once.
const COUNT: &str = "
import json
data = json.load(open('/run/cloud-init/instance-data-sensitive.json'))
values = set(map(str, data['ds']['config'].values()))
print(sum(f'schlüssel {n} €' in values for n in range(1000)))
";

fn many_keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("user.key-{number}=schlüssel {number} €"))
}

/// User-data of one mebibyte, not all of them ASCII.
fn large_user_data(hostname: &str) -> String {
    let mut text = user_data(hostname);
    text.push_str("# ");
    let rest = MEBIBYTE - text.len() - 1;
    text.push_str(&"é".repeat(rest / 2));
    text.push_str(&"\n".repeat(MEBIBYTE - text.len()));
    text
}

#[tokio::test]
async fn lxd_socket_serves_in_every_boot() {
    let mut vm = machine("lxd", Source::Lxd, true).await;
    give(&vm, "erste").await;
    let _host = vm.serve().unwrap();

    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 1, "LXD, None").await;
    assert_applied(&vm, &["erste"]).await;
    assert!(!is_kicked(&vm).await);
    assert_eq!(in_guest(&vm, "cloud-id").await, "lxd");
    let first = in_guest(&vm, "cat /var/lib/cloud/data/instance-id").await;

    // The same data: what is done once per instance is not done again.
    power_off(&mut vm).await;
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 2, "LXD, None").await;
    assert_applied(&vm, &["erste"]).await;

    // New data make a new instance: all of it is done again.
    power_off(&mut vm).await;
    give(&vm, "zweite").await;
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 3, "LXD, None").await;
    assert_applied(&vm, &["erste", "zweite"]).await;
    let second = in_guest(&vm, "cat /var/lib/cloud/data/instance-id").await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn thousand_keys_and_a_mebibyte_arrive_in_the_first_boot() {
    let mut vm = machine("large", Source::Lxd, true).await;
    give(&vm, "erste").await;
    let large = large_user_data("viele");
    assert_eq!(large.len(), MEBIBYTE);
    set(&vm, "cloud-init.user-data", &large).await;
    let words = ["config", "set", vm.name()].map(str::to_owned);
    run(vm.cli(words.into_iter().chain(many_keys()))).await;
    let _host = vm.serve().unwrap();
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 1, "LXD, None").await;
    assert_applied(&vm, &["viele"]).await;
    let read = run(vm.exec(["cat", "/var/lib/cloud/instance/user-data.txt"])).await;
    assert!(read == large, "{} bytes of user-data", read.len());
    let found = run(vm.exec(["python3", "-c", COUNT])).await;
    assert_eq!(found.trim(), KEYS.to_string());
}

#[tokio::test]
async fn lxd_socket_is_found_in_the_first_boot() {
    let mut vm = machine("lxd-plain", Source::Lxd, false).await;
    give(&vm, "erste").await;
    let _host = vm.serve().unwrap();
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 1, "LXD, None").await;
    assert_applied(&vm, &["erste"]).await;
    assert!(is_kicked(&vm).await);
}

#[tokio::test]
async fn default_host_is_found_and_waited_for() {
    let mut vm = configured("lxd-found", String::new(), false).await;
    give(&vm, "erste").await;
    let _host = vm.serve().unwrap();
    assert_eq!(boot(&mut vm).await, "running");
    let said = in_guest(
        &vm,
        "journalctl -b -o short-monotonic --no-pager -u vsock-agent",
    )
    .await;
    assert!(
        said.contains("the host answers at its default address"),
        "{said}"
    );
    assert_sound(&vm, 1, "LXD, None").await;
    assert_applied(&vm, &["erste"]).await;
    assert!(is_kicked(&vm).await);
}
