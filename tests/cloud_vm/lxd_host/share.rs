//! What LXD's host puts into the config share, and the other shares.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use harness::{
    Pair,
    vm::{MAC, StockAgent},
};
use serde_json::json;

use crate::data::{NIC, network_config, user_data};

/// The size of a packet on the machine's network.
pub(super) const MTU: u32 = 1400;

/// What cloud-init knows an instance by: the same in the share and on the socket.
pub(super) const META_DATA: &str = "instance-id: erste-1\nlocal-hostname: erste\n";

/// The templates of LXD's image of Debian, where they go, and what they are when rendered.
pub(super) fn templates() -> [(&'static str, &'static str, String); 5] {
    let seed = [
        "/var/lib/cloud/seed/nocloud-net/meta-data",
        "/var/lib/cloud/seed/nocloud-net/network-config",
        "/var/lib/cloud/seed/nocloud-net/user-data",
        "/var/lib/cloud/seed/nocloud-net/vendor-data",
    ];
    [
        ("hostname.tpl", "/etc/hostname", "erste\n".to_owned()),
        ("cloud-init-meta.tpl", seed[0], META_DATA.to_owned()),
        ("cloud-init-network.tpl", seed[1], network_config()),
        ("cloud-init-user.tpl", seed[2], user_data("erste")),
        (
            "cloud-init-vendor.tpl",
            seed[3],
            "#cloud-config\n{}\n".to_owned(),
        ),
    ]
}

/// The folders of one machine that its guest may mount.
pub(super) struct Share {
    parent: PathBuf,
    config: PathBuf,
}

impl Share {
    /// Makes them below `parent`: identity, network card, a disk.
    pub(super) fn new(parent: &Path, agent: &Pair, client: &Pair) -> Self {
        let share = Self {
            parent: parent.to_owned(),
            config: parent.join("config"),
        };
        for name in ["config/nics", "config/files", "data", "late"] {
            fs::create_dir_all(parent.join(name)).unwrap();
        }
        fs::write(parent.join("data/file"), "of the host\n").unwrap();
        // By their names in the share: the client's is the one that the agent knows its host by.
        share.put("server.crt", 0o400, &client.certificate);
        share.put("agent.crt", 0o400, &agent.certificate);
        share.put("agent.key", 0o400, &agent.key);
        let mounts = json!([{
            "source": "lxd_data", "target": "/srv/data", "fstype": "9p",
            "options": ["trans=virtio,msize=33554432", "ro"],
        }]);
        share.put("agent-mounts.json", 0o400, &mounts.to_string());
        let nic = json!({
            "device_name": "eth0", "nic_name": NIC, "mac_address": MAC, "mtu": MTU,
        });
        share.put("nics/eth0.json", 0o700, &nic.to_string());
        for folder in ["nics", "files", ""] {
            let mode = Permissions::from_mode(0o500);
            fs::set_permissions(share.config.join(folder), mode).unwrap();
        }
        share
    }

    fn put(&self, name: &str, mode: u32, content: &str) {
        let path = self.config.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    /// Adds what a host with a door for its guests adds, and the agent that it would have run.
    pub(super) async fn say_where(&self, certificate: &str, port: u32) {
        let said = json!({ "cid": 2, "port": port, "certificate": certificate, "devlxd": true });
        self.put("agent.conf", 0o644, &said.to_string());
        let agent = StockAgent::Lxd.find().await.unwrap();
        fs::copy(agent, self.config.join("lxd-agent")).unwrap();
    }

    /// Adds the files of an image with templates, rendered.
    pub(super) fn add_templates(&self) {
        let mut metadata = "architecture: x86_64\ncreation_date: 1700000000\n\
            properties:\n  os: Debian\n  release: bookworm\ntemplates:\n"
            .to_owned();
        for (name, target, text) in templates() {
            self.put(&format!("files/{name}.out"), 0o644, &text);
            metadata.push_str(&format!(
                "  {target}:\n    when:\n    - create\n    - copy\n    create_only: false\n\
                 \x20   template: {name}\n    properties: {{}}\n"
            ));
        }
        self.put("files/metadata.yaml", 0o644, &metadata);
    }

    /// The folders and their tags.
    pub(super) fn shares(&self) -> Vec<(String, PathBuf)> {
        let data = |name: &str| (format!("lxd_{name}"), self.parent.join(name));
        let config = ("config".to_owned(), self.config.clone());
        vec![config, data("data"), data("late")]
    }

    /// A folder of the host that the guest mounts while it runs.
    pub(super) fn late(&self) -> PathBuf {
        self.parent.join("late")
    }
}
