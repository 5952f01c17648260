//! A machine laid out as LXD's, with LXD's agent from Debian's package, of which only the binary is
//! ours: its own unit starts it, with the config share by virtiofs and the status port.
//!
//! The host is written from what LXD's does, and has nothing of our own host in it.

pub(crate) mod commands;
mod guest_api;
pub(crate) mod ring;
mod share;

use harness::{
    HostData, MockHost, Pair, RawClient, TestFolder, TestVm,
    vm::{Installed, MAC, StockAgent, System, VmOptions},
};
use russh_sftp::{
    client::SftpSession,
    protocol::{FileAttributes, OpenFlags},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use self::{
    commands::{get, script},
    ring::{Ring, status_port},
    share::{META_DATA, MTU, Share, templates},
};
use crate::{
    PATIENCE,
    data::{NIC, assert_applied, network_config, user_data},
};

/// Where the host answers its guests: LXD takes any port that is free.
const HOST_PORT: u32 = 41043;

/// Bytes that the host keeps of what a guest says on its status port.
const RING_BYTES: u32 = 16;

/// Which host the machine believes to be on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// LXD 5.0.2, which has one port.
    Old,
    /// LXD since 5.20: the old port is there for old images, and leads nowhere.
    Current,
}

/// A host and its machine.
struct Host {
    vm: TestVm,
    ring: Ring,
    client: RawClient,
    data: MockHost,
    /// The certificate that the host shows to its guests.
    certificate: String,
    share: Share,
    _folder: TestFolder,
}

impl Host {
    /// Boots a machine and waits until the host knows that its agent is there.
    async fn start(name: &str, version: Version, data: HostData, templates: bool) -> Self {
        let folder = TestFolder::new(name);
        let (agent, client) = (Pair::lxd_agent(), Pair::lxd_client());
        let server = Pair::lxd_agent();
        let share = Share::new(folder.path(), &agent, &client);
        share.say_where(&server.certificate, HOST_PORT).await;
        if templates {
            share.add_templates();
        }
        let identity = folder.path().join("identity");
        agent.write_for_cli(&identity, name, &client);
        let options = VmOptions {
            memory_mib: 1024,
            // For `agent-cli`, by which the other tests' checks look at a machine.
            identity: Some(identity),
            system: Some(System {
                installed: Installed::InPlaceOf(StockAgent::Lxd),
                shares: share.shares(),
                hardware: hardware(version),
                ..System::default()
            }),
            ..VmOptions::new(name)
        };
        let mut vm = TestVm::prepare(options).await.unwrap();
        let data = MockHost::start_tls(vm.host_address(HOST_PORT), data, &server, Some(&agent));
        let client = RawClient::at(&vm.endpoint()).with_tls(&client, &agent);
        vm.boot().await.unwrap();
        let ring = Ring::open(&vm, RING_BYTES).await;
        let mut host = Self {
            vm,
            ring,
            client,
            data,
            certificate: server.certificate,
            share,
            _folder: folder,
        };
        host.ring.hear("STARTED").await;
        host
    }

    /// Boots again, to where the host knows that the agent is there.
    async fn boot(&mut self) {
        self.vm.boot().await.unwrap();
        self.ring = Ring::open(&self.vm, RING_BYTES).await;
        self.ring.hear("STARTED").await;
        self.connect(true).await;
    }

    /// Waits until there is nothing left to be started, and gives systemd's word for how it went.
    async fn settle(&self) -> String {
        self.script("systemctl is-system-running --wait || true")
            .await
    }

    /// Says where it answers, as a host does when it has heard `STARTED`.
    async fn connect(&self, devlxd: bool) {
        let info = self.client.get("/1.0").await;
        assert_eq!(info.status, 200, "{info:?}");
        let body = json!({
            "cid": 2, "port": HOST_PORT, "certificate": self.certificate, "devlxd": devlxd,
        });
        let body = body.to_string();
        let put = self.client.request("PUT", "/1.0", &body).await;
        assert_eq!(put.status, 200, "{put:?}");
        assert_eq!(put.body["metadata"], json!({}));
    }

    async fn get(&self, path: &str) -> Value {
        get(&self.client, path).await
    }

    async fn script(&self, text: &str) -> String {
        script(&self.client, text).await
    }

    async fn check_info(&self) {
        let info = self.get("/1.0").await;
        assert_eq!(info["environment"]["server"], json!("lxd-agent"));
        let extensions = info["api_extensions"].as_array().unwrap();
        for needed in ["container_exec_user_group_cwd", "container_exec_recording"] {
            assert!(extensions.contains(&json!(needed)), "{extensions:?}");
        }
    }

    /// Checks what the host put into the share.
    async fn check_share(&self) {
        let look = format!("cat /sys/class/net/{NIC}/address /sys/class/net/{NIC}/mtu");
        assert_eq!(self.script(&look).await, format!("{MAC}\n{MTU}"));
        let mounts = self.script("grep ' /srv/data ' /proc/mounts").await;
        assert!(
            mounts.starts_with("lxd_data /srv/data virtiofs ro,"),
            "{mounts}"
        );
        assert_eq!(self.script("cat /srv/data/file").await, "of the host");
        let unit = "systemctl show --value -p FragmentPath,ExecStart lxd-agent";
        let unit = self.script(unit).await;
        assert!(
            unit.contains("/lib/systemd/system/lxd-agent.service"),
            "{unit}"
        );
        assert!(unit.contains("argv[]=/usr/bin/lxd-agent ;"), "{unit}");
    }

    async fn check_state(&self) {
        let address = format!("ip address replace 10.0.3.1/24 dev {NIC}");
        self.script(&address).await;
        let state = self.get("/1.0/state").await;
        assert_eq!(
            (&state["status"], &state["status_code"]),
            (&json!(""), &json!(0))
        );
        assert_eq!((&state["pid"], &state["disk"]), (&json!(1), &Value::Null));
        let nic = &state["network"][NIC];
        assert_eq!(
            (&nic["hwaddr"], &nic["mtu"]),
            (&json!(MAC), &json!(MTU)),
            "{nic}"
        );
        assert_eq!(
            (&nic["type"], &nic["state"]),
            (&json!("broadcast"), &json!("up"))
        );
        let addresses = nic["addresses"].as_array().unwrap();
        let address = json!({
            "family": "inet", "address": "10.0.3.1", "netmask": "24", "scope": "global",
        });
        assert!(addresses.contains(&address), "{addresses:?}");
        assert_eq!(state["network"]["lo"]["type"], json!("loopback"));
        for number in [
            &state["cpu"]["usage"],
            &state["memory"]["usage"],
            &state["processes"],
        ] {
            assert!(number.as_i64().unwrap() > 20, "{state}");
        }
    }

    async fn check_metrics(&self) {
        let metrics = self.get("/1.0/metrics").await;
        for (group, member, value) in [
            ("cpu_seconds_total", "cpu1", "cpu_seconds_user"),
            ("disk", "vda", "disk_read_bytes"),
            ("network", NIC, "network_receive_bytes"),
        ] {
            assert!(
                metrics[group][member][value].is_number(),
                "{group}: {metrics}"
            );
        }
        let root = &metrics["filesystem"]["/dev/vda"];
        assert_eq!(
            (&root["mountpoint"], &root["fstype"]),
            (&json!("/"), &json!("ext4"))
        );
        assert!(
            metrics["memory"]["memory_mem_total_bytes"]
                .as_u64()
                .unwrap()
                > 800 << 20
        );
        assert!(metrics["procs_total"].as_u64().unwrap() > 4, "{metrics}");
    }

    /// Checks files, by what LXD's host does for a request of its own.
    async fn check_files(&self) {
        let stream = self.client.upgrade("/1.0/sftp", "sftp").await;
        let sftp = SftpSession::new(stream).await.unwrap();
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        // `POST`: a file that is not there gets its owner and mode when it is whole.
        assert!(!sftp.try_exists("/root/pushed").await.unwrap());
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let mut file = sftp.open_with_flags("/root/pushed", flags).await.unwrap();
        file.write_all(&data).await.unwrap();
        file.shutdown().await.unwrap();
        for attributes in [
            FileAttributes {
                permissions: Some(0o640),
                ..FileAttributes::empty()
            },
            FileAttributes {
                uid: Some(33),
                gid: Some(33),
                ..FileAttributes::empty()
            },
        ] {
            sftp.set_metadata("/root/pushed", attributes).await.unwrap();
        }
        // `GET`, of each kind.
        let known = sftp.symlink_metadata("/root/pushed").await.unwrap();
        assert_eq!(
            (known.size, known.permissions),
            (Some(400_000), Some(0o100_640))
        );
        assert_eq!((known.uid, known.gid), (Some(33), Some(33)));
        let mut read = Vec::new();
        let mut file = sftp.open("/root/pushed").await.unwrap();
        file.read_to_end(&mut read).await.unwrap();
        assert!(read == data, "{} bytes", read.len());
        sftp.create_dir("/root/folder").await.unwrap();
        // What it leads to goes first, as OpenSSH has it and the draft has not.
        let link = sftp.symlink("../pushed", "/root/folder/link");
        link.await.unwrap();
        assert_eq!(
            sftp.read_link("/root/folder/link").await.unwrap(),
            "../pushed"
        );
        let listing = sftp.read_dir("/root/folder").await.unwrap();
        let names: Vec<_> = listing.map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["link"]);
        // `DELETE`.
        sftp.remove_file("/root/folder/link").await.unwrap();
        sftp.remove_dir("/root/folder").await.unwrap();
        sftp.remove_file("/root/pushed").await.unwrap();
        sftp.close().await.unwrap();
    }

    /// Checks a restart of the agent by its own unit.
    async fn check_restart(&mut self) {
        let restart = "systemd-run --quiet --on-active=1 systemctl restart lxd-agent";
        self.script(restart).await;
        self.ring.hear("STOPPED").await;
        self.ring.hear("STARTED").await;
        self.connect(true).await;
        let mounts = self.script("grep -c ' /srv/data ' /proc/mounts").await;
        assert_eq!(mounts, "1", "mounts of one share");
    }

    async fn power_off(&mut self) {
        self.ring.power_down().await;
        self.vm.wait_off().await.unwrap();
    }
}

/// QEMU's arguments for what LXD gives a machine: its name, and the status ports.
fn hardware(version: Version) -> Vec<String> {
    let board = "type=2,manufacturer=Canonical Ltd.,product=LXD";
    let dead = "virtserialport,name=org.linuxcontainers.lxd";
    let (port, more) = match version {
        Version::Old => ("org.linuxcontainers.lxd", None),
        Version::Current => ("com.canonical.lxd", Some(["-device", dead])),
    };
    let words = ["-smbios", board].map(str::to_owned).into_iter();
    let more = more.into_iter().flatten().map(str::to_owned);
    words
        .chain(status_port(port, RING_BYTES))
        .chain(more)
        .collect()
}

/// What the host has for the machine.
fn host_data() -> HostData {
    HostData {
        meta_data: META_DATA.to_owned(),
        ..HostData::with(&[
            ("user.role", "größe ☃"),
            ("cloud-init.user-data", &user_data("erste")),
            ("cloud-init.network-config", &network_config()),
        ])
    }
}

#[tokio::test]
async fn replaces_lxd_agent_under_a_5_0_2_host() {
    let mut host = Host::start("lxd-old", Version::Old, host_data(), true).await;
    let checks = timeout(PATIENCE, async {
        host.check_connected().await;
        host.check_info().await;
        host.settle().await;
        host.check_share().await;
        assert_eq!(host.script("hostname").await, "erste");
        for (_, name, content) in templates() {
            let written = host.script(&format!("cat {name}")).await;
            assert_eq!(written, content.trim(), "{name}");
        }
        host.check_exec().await;
        host.check_state().await;
        host.check_metrics().await;
        host.check_files().await;
        host.check_guest_api().await;
        host.check_events().await;
        host.check_restart().await;
        host.power_off().await;
    });
    checks.await.expect("the checks end in time");
    // The unit is started too late to be sure that cloud-init has its data in the first boot; LXD's
    // agent would have rebooted the machine. By the share and by the socket they are the same.
    let checks = timeout(PATIENCE, async {
        host.boot().await;
        assert_eq!(host.settle().await, "running");
        assert_applied(&host.vm, &["erste"]).await;
    });
    checks.await.expect("the second boot ends in time");
}

#[tokio::test]
async fn replaces_lxd_agent_under_a_current_host() {
    let mut host = Host::start("lxd-current", Version::Current, host_data(), false).await;
    let checks = timeout(PATIENCE, async {
        host.check_connected().await;
        host.settle().await;
        host.check_share().await;
        host.check_exec().await;
        host.check_hotplug().await;
        host.check_restart().await;
        host.power_off().await;
    });
    checks.await.expect("the checks end in time");
}
