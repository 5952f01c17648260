//! Debian's cloud-init, unmodified, of Debian 12 and the newest: what it reads, and whole boots of it
//! in namespaces, with both of our programs as they are.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

mod boots;
mod clients;
mod neighbours;
mod network;
mod presets;
mod read;

use std::{path::Path, process::Command, sync::LazyLock};

use harness::{
    HostData, MockHost, TestFolder,
    cloud_init::{Booted, Guest, Hints, Release},
    vm::{Product, build_for_here},
};

/// What every instance here is told to do.
const USER_DATA: &str = "#cloud-config\n\
    write_files:\n- {path: /root/said, content: 'grüße ☃'}\n\
    runcmd:\n- echo ran >> /root/ran\n";

/// An SSH key, by its beginning.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB";

/// The programs under test.
static PRODUCT: LazyLock<Product> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(build_for_here()).unwrap()
});

/// What the host has for an instance of this id.
fn data(id: &str) -> HostData {
    let mut data = HostData::with(&[
        ("cloud-init.user-data", USER_DATA),
        ("cloud-init.vendor-data", "#cloud-config\n{}\n"),
    ]);
    data.meta_data = format!(
        "instance-id: {id}\nlocal-hostname: guest-{id}\nregion: here\n\
         availability-zone: here-1\npublic-keys:\n- {KEY} ann\n"
    );
    data
}

/// A guest that has never been booted, and its host.
fn guest(release: Release, data: HostData) -> (Guest, MockHost) {
    let guest = Guest::new(release);
    let host = MockHost::start(&guest.host_socket(), data);
    (guest, host)
}

/// Boots it with an agent.
fn boot(guest: &Guest, hints: &Hints, agent: &[&str]) -> Booted {
    guest.boot(hints, Some((&PRODUCT.agent, agent)))
}

/// What `agent-cli qemu-args` makes of the guest.
fn hints(datasource: &str) -> Hints {
    let folder = TestFolder::new("qemu-args");
    let cli = |arguments: &[&str]| {
        let mut command = Command::new(&PRODUCT.cli);
        command
            .args(arguments)
            .env("AGENT_CLI_CONFIG", folder.path().join("config.toml"))
            .env("XDG_CONFIG_HOME", folder.path());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    };
    let socket = Path::new("/nowhere/sock").display();
    cli(&["vm", "add", "one", &format!("unix:{socket}")]);
    let arguments = cli(&["qemu-args", "one", "--datasource", datasource, "--json"]);
    Hints::of_qemu(&serde_json::from_slice::<Vec<String>>(&arguments).unwrap())
}

/// Fails unless the data of the instance are in the guest.
fn has_data(guest: &Guest, booted: &Booted, id: &str) {
    assert_eq!(guest.read("root/said"), "grüße ☃", "{}", booted.story());
    assert_eq!(guest.read("root/ran"), "ran\n", "{}", booted.story());
    assert_eq!(booted.read("hostname").trim(), format!("guest-{id}"));
    let keys = guest.read("home/debian/.ssh/authorized_keys");
    assert!(keys.contains(KEY), "{keys}: {}", booted.story());
}
