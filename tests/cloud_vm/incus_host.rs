//! A machine laid out as Incus's, with Incus's agent from Debian's package, of which only the binary
//! is ours: the config share is a CD-ROM, as Debian's kernel for clouds has no 9p.

use std::fs;

use harness::{
    HostData, MockHost, Pair, RawClient, TestFolder, TestVm,
    vm::{Installed, StockAgent, System, VmOptions},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    PATIENCE,
    data::ASK,
    disc::{disc, drive},
    lxd_host::{
        commands::{get, run, script},
        ring::{Ring, status_port},
    },
};

/// Where the host answers its guests.
const HOST_PORT: u32 = 41045;

/// Bytes that the host keeps of what a guest says.
const RING_BYTES: u32 = 16 * 1024;

/// What the host says of itself, on the disc and later.
fn address(server: &Pair) -> String {
    let certificate = &server.certificate;
    json!({ "cid": 2, "port": HOST_PORT, "certificate": certificate, "dev_incus": true })
        .to_string()
}

async fn put(client: &RawClient, address: &str) {
    let put = client.request("PUT", "/1.0", address).await;
    assert_eq!(put.status, 200, "{put:?}");
}

#[tokio::test]
async fn replaces_incus_agent_under_its_host() {
    let folder = TestFolder::new("incus");
    let (agent, client, server) = (Pair::lxd_agent(), Pair::lxd_client(), Pair::lxd_agent());
    let image = folder.path().join("disc.iso");
    let address = address(&server);
    let files = [
        ("agent.conf", &address),
        ("agent.crt", &agent.certificate),
        ("agent.key", &agent.key),
        ("server.crt", &client.certificate),
    ];
    fs::write(&image, disc("incus-agent", &files)).unwrap();
    let port = status_port("org.linuxcontainers.incus", RING_BYTES);
    let hardware = port.into_iter().chain(drive(&image));
    let options = VmOptions {
        memory_mib: 1024,
        system: Some(System {
            installed: Installed::InPlaceOf(StockAgent::Incus),
            hardware: hardware.collect(),
            ..System::default()
        }),
        ..VmOptions::new("incus")
    };
    let mut vm = TestVm::prepare(options).await.unwrap();
    let data = HostData::with(&[("user.role", "web")]);
    let _host = MockHost::start_tls(vm.host_address(HOST_PORT), data, &server, Some(&agent));
    let client = RawClient::at(&vm.endpoint()).with_tls(&client, &agent);
    vm.boot().await.unwrap();
    let mut ring = Ring::open(&vm, RING_BYTES).await;
    let checks = timeout(PATIENCE, async {
        ring.hear("STARTED").await;
        put(&client, &address).await;
        assert!(ring.read().await.contains("CONNECTED\n"));
        check(&client).await;
        let restart = "systemd-run --quiet --on-active=1 systemctl restart incus-agent";
        script(&client, restart).await;
        ring.hear("STOPPED").await;
        ring.hear("STARTED").await;
        put(&client, &address).await;
        ring.power_down().await;
    });
    checks.await.expect("the checks end in time");
    vm.wait_off().await.unwrap();
}

async fn check(client: &RawClient) {
    let info = get(client, "/1.0").await;
    assert_eq!(info["environment"]["server"], json!("incus-agent"));
    script(client, "systemctl is-system-running --wait || true").await;
    let unit = script(
        client,
        "systemctl show --value -p FragmentPath,ExecStart incus-agent",
    )
    .await;
    assert!(
        unit.contains("/lib/systemd/system/incus-agent.service"),
        "{unit}"
    );
    assert!(
        unit.contains("argv[]=/usr/libexec/incus/incus-agent ;"),
        "{unit}"
    );
    // Programs made for LXD find the socket by a link.
    assert_eq!(
        script(client, "realpath /dev/lxd/sock").await,
        "/dev/incus/sock"
    );
    let answer = run(
        client,
        &["python3", "-c", ASK, "/1.0/config/user.role"],
        b"",
    )
    .await;
    assert_eq!(answer.output.trim(), r#"[[200, "web"]]"#);
    let state = get(client, "/1.0/state").await;
    assert_eq!(state["os_info"]["os"], json!("Debian GNU/Linux"), "{state}");
    let metrics = get(client, "/1.0/metrics").await;
    let cpus = metrics["cpu_seconds_total"].as_array().unwrap();
    assert!(cpus.iter().any(|cpu| cpu["cpu"] == "cpu1"), "{metrics}");
}
