//! An image for everybody: the agent is in it, enabled by nobody, and gets its identity from where
//! the machine starts.

use std::fs;

use harness::{
    HostData, MockHost, Pair, TestFolder, TestVm, base64,
    vm::{Installed, System, VmOptions},
};
use serde_json::json;

use crate::{
    boot,
    data::{ASK, assert_applied, network_config, user_data},
    disc::{disc, drive},
    in_guest, run,
};

/// Where the unit has what was handed over by the firmware.
const CREDENTIAL: &str = "/run/credentials/vsock-agent.service/agent.crt";

/// Where the host answers its guests.
const HOST_PORT: u32 = 41044;

/// A machine that is off, and who knows it.
struct Given {
    folder: TestFolder,
    name: &'static str,
    agent: Pair,
    client: Pair,
}

impl Given {
    fn new(name: &'static str) -> Self {
        let folder = TestFolder::new(name);
        let (agent, client) = (Pair::lxd_agent(), Pair::lxd_client());
        agent.write_for_cli(&folder.path().join("identity"), name, &client);
        Self {
            folder,
            name,
            agent,
            client,
        }
    }

    /// The credentials, by the names that the unit knows them by.
    fn credentials(&self) -> [(&'static str, &String); 3] {
        [
            ("vsock-agent.crt", &self.agent.certificate),
            ("vsock-agent.key", &self.agent.key),
            ("vsock-agent.server.crt", &self.client.certificate),
        ]
    }

    async fn prepare(&self, hardware: Vec<String>) -> TestVm {
        let options = VmOptions {
            memory_mib: 1024,
            identity: Some(self.folder.path().join("identity")),
            system: Some(System {
                installed: Installed::Generated,
                hardware,
                ..System::default()
            }),
            ..VmOptions::new(self.name)
        };
        TestVm::prepare(options).await.unwrap()
    }
}

/// Boots, by which the agent answers with TLS, and checks that it was started in the usual place of
/// the boot with the one identity there is, in `place`.
async fn assert_started(vm: &mut TestVm, place: &str) {
    assert_eq!(boot(vm).await, "running");
    let enabled = in_guest(vm, "systemctl is-enabled vsock-agent || true").await;
    // By the generator: a link for this boot.
    assert_eq!(enabled, "enabled-runtime");
    let wanted = "systemctl show --value -p WantedBy vsock-agent";
    assert_eq!(in_guest(vm, wanted).await, "multi-user.target");
    let look =
        format!("ls -d /etc/vsock-agent /run/vsock-agent/share {CREDENTIAL} 2>/dev/null || true");
    assert_eq!(in_guest(vm, &look).await, place);
}

#[tokio::test]
async fn smbios_provides_identity_and_host_address() {
    let given = Given::new("smbios");
    let server = Pair::lxd_agent();
    let address = json!({
        "cid": 2, "port": HOST_PORT, "certificate": server.certificate, "devlxd": true,
    });
    let address = address.to_string();
    let all = given
        .credentials()
        .into_iter()
        .chain([("vsock-agent.conf", &address)]);
    let hardware = all.flat_map(|(name, content)| {
        let text = base64(content.as_bytes());
        let string = format!("type=11,value=io.systemd.credential.binary:{name}={text}");
        ["-smbios".to_owned(), string]
    });
    let mut vm = given.prepare(hardware.collect()).await;
    let data = HostData::with(&[
        ("user.role", "web"),
        ("cloud-init.user-data", &user_data("erste")),
        ("cloud-init.network-config", &network_config()),
    ]);
    let _host = MockHost::start_tls(
        vm.host_address(HOST_PORT),
        data,
        &server,
        Some(&given.agent),
    );
    assert_started(&mut vm, CREDENTIAL).await;
    assert_applied(&vm, &["erste"]).await;
    let answer = run(vm.exec(["python3", "-c", ASK, "/1.0/config/user.role"])).await;
    assert_eq!(answer.trim(), r#"[[200, "web"]]"#);
}

#[tokio::test]
async fn fw_cfg_provides_the_identity() {
    let given = Given::new("fw-cfg");
    let hardware = given.credentials().into_iter().flat_map(|(name, content)| {
        let path = given.folder.path().join(name);
        fs::write(&path, content).unwrap();
        let path = path.display();
        let file = format!("name=opt/io.systemd.credentials/{name},file={path}");
        ["-fw_cfg".to_owned(), file]
    });
    let mut vm = given.prepare(hardware.collect()).await;
    assert_started(&mut vm, CREDENTIAL).await;
}

#[tokio::test]
async fn cd_rom_provides_the_identity() {
    let given = Given::new("disc");
    let files = [
        ("agent.crt", &given.agent.certificate),
        ("agent.key", &given.agent.key),
        ("server.crt", &given.client.certificate),
    ];
    let image = given.folder.path().join("disc.iso");
    fs::write(&image, disc("incus-agent", &files)).unwrap();
    let mut vm = given.prepare(drive(&image)).await;
    assert_started(&mut vm, "/run/vsock-agent/share").await;
}
