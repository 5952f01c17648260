//! A guest in namespaces of this computer, whose boots are cloud-init's: the generator, the agent,
//! and every stage. Its disk stays from boot to boot. Needs root.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::packages::Release;
use crate::TestFolder;

const NAMESPACE: &str = include_str!("namespace.sh");
const BOOT: &str = include_str!("boot.sh");

/// Programs that would ask the machine below: it is a virtual one, has no disks, and systemd starts
/// what it is told to.
const SHIMS: [(&str, &str); 3] = [
    (
        "usr/local/sbin/systemd-detect-virt",
        "case \"$*\" in *--container*) echo none; exit 1;; esac\necho kvm",
    ),
    ("usr/local/sbin/blkid", ":"),
    (
        "usr/bin/systemctl",
        "case \"$*\" in\n\
         *SystemState*) echo SystemState=starting;;\n\
         *InactiveExit*) echo T=0; echo T=0;;\n\
         show*) printf 'UnitFileState=enabled\\nActiveState=inactive\\nSubState=dead\\nMainPID=0\\n';;\n\
         daemon-reload) cd /run; exec /usr/lib/systemd/system-generators/cloud-init-generator \
         generator generator generator;;\nesac",
    ),
];

/// What is not of the guest: its locales, its file system, and a name server that cannot be reached.
const CONFIG: &str = "locale: false\nresize_rootfs: false\ngrowpart: {mode: 'off'}\n";
const RESOLVER: &str = "nameserver 127.0.0.1\n";

/// The guest; `Drop` forgets it.
#[derive(Debug)]
pub struct Guest {
    release: Release,
    folder: TestFolder,
}

/// What the virtual machine says of itself, as files below `/sys/class`.
#[derive(Debug, Clone, Default)]
pub struct Hints(Vec<(String, String)>);

/// What became of a boot.
#[derive(Debug)]
pub struct Booted(PathBuf);

impl Hints {
    /// What QEMU makes of its arguments.
    #[must_use]
    pub fn of_qemu(arguments: &[String]) -> Self {
        let mut hints = Vec::new();
        for argument in arguments {
            let mut words = argument.split(',');
            let first = words.next().unwrap_or_default();
            for word in words {
                let Some((key, value)) = word.split_once('=') else {
                    continue;
                };
                let file = match (first, key) {
                    ("type=1", "manufacturer") => "dmi/id/sys_vendor",
                    ("type=1", "product") => "dmi/id/product_name",
                    ("type=1", "serial") => "dmi/id/product_serial",
                    ("type=1", "uuid") => "dmi/id/product_uuid",
                    ("type=2", "manufacturer") => "dmi/id/board_vendor",
                    ("type=2", "product") => "dmi/id/board_name",
                    ("type=3", "asset") => "dmi/id/chassis_asset_tag",
                    ("virtserialport", "name") => "virtio-ports/vport0p1/name",
                    ("virtserialport", "chardev") | ("null", "id") => continue,
                    other => panic!("{other:?} is not known here"),
                };
                hints.push((file.to_owned(), value.to_owned()));
            }
        }
        Self(hints)
    }

    /// The same without those whose file has this in its name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(file, _)| !file.contains(name));
        self
    }
}

impl Guest {
    /// A guest that has never been booted.
    #[must_use]
    pub fn new(release: Release) -> Self {
        let folder = TestFolder::in_memory("cloud-init");
        for name in ["disk", "work", "root", "sys", "host"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let guest = Self { release, folder };
        for (path, script) in SHIMS {
            guest.write(path, &format!("#!/bin/sh\n{script}\n"));
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(guest.disk().join(path), mode).unwrap();
        }
        guest.write("etc/cloud/cloud.cfg.d/90-guest.cfg", CONFIG);
        guest.write("etc/resolv.conf", RESOLVER);
        guest
    }

    /// Where a host can listen; the agent finds it there as `/run/host/host.sock`.
    #[must_use]
    pub fn host_socket(&self) -> PathBuf {
        self.folder.path().join("host/host.sock")
    }

    /// What the guest has written.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// A file of its disk, or nothing.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.disk().join(path)).unwrap_or_default()
    }

    /// Puts a file on its disk.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.disk().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Boots it, with an agent that has these arguments beside those that every one has, or without
    /// one, to the end of cloud-init.
    #[must_use]
    pub fn boot(&self, hints: &Hints, agent: Option<(&Path, &[&str])>) -> Booted {
        let top = self.folder.path();
        for name in ["hints", "host/out"] {
            let _ = fs::remove_dir_all(top.join(name));
            fs::create_dir_all(top.join(name)).unwrap();
        }
        for (file, text) in &hints.0 {
            let path = top.join("hints").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        fs::write(top.join("host/boot.sh"), BOOT).unwrap();
        let _ = fs::remove_file(top.join("host/agent"));
        if let Some((_, arguments)) = agent {
            let usual = [
                ["--config", "/dev/null", "--plain", "--log", "debug"].as_slice(),
                &["--listen", "unix:/run/agent.sock", "--ready-timeout", "5"],
                &["--host", "unix:/run/host/host.sock"],
            ];
            let all = [usual.concat(), arguments.to_vec()].concat();
            fs::write(top.join("host/agent"), all.join("\n")).unwrap();
        }
        let program = agent.map_or(Path::new("/bin/true"), |(program, _)| program);
        let mut command = Command::new("unshare");
        command
            .args(["-m", "-n", "-u", "-i", "-p", "--fork", "--kill-child"])
            .args(["timeout", "-k", "5", "600", "sh", "-c", NAMESPACE, "guest"])
            .arg(top)
            .arg(self.release.layer())
            .arg(program);
        let output = command.output().unwrap();
        let booted = Booted(top.join("host/out"));
        assert!(
            output.status.success() && booted.0.join("end").exists(),
            "it does not boot (only root can): {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            booted.read("log")
        );
        booted
    }
}

impl Booted {
    /// A file that the boot left, or nothing.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    /// The datasources that the generator found, before the agent was there.
    #[must_use]
    pub fn found_first(&self) -> String {
        list(&self.read("generated/cloud.cfg"))
    }

    /// Those that cloud-init went by.
    #[must_use]
    pub fn found(&self) -> String {
        list(&self.read("run/cloud.cfg"))
    }

    /// The name of the cloud.
    #[must_use]
    pub fn cloud_id(&self) -> String {
        self.read("cloud-id").trim().to_owned()
    }

    /// What came of it: the datasource, and errors.
    #[must_use]
    pub fn result(&self) -> Value {
        let result: Value = serde_json::from_str(&self.read("run/result.json")).unwrap_or_default();
        result["v1"].clone()
    }

    /// What it says itself.
    #[must_use]
    pub fn status(&self) -> String {
        self.read("status").trim().to_owned()
    }

    /// All there is to see of it when something is not as it should be.
    #[must_use]
    pub fn story(&self) -> String {
        let log = self.read("cloud-init.log");
        let odd = log.lines().filter(|line| {
            ["WARN", "ERROR", "Error"]
                .iter()
                .any(|word| line.contains(word))
        });
        let odd: Vec<_> = odd.collect();
        format!(
            "{}\n{}\n{}\n{}\n{}\n{}",
            self.read("log"),
            self.read("stages"),
            self.read("status"),
            self.read("run/result.json"),
            self.read("agent.log"),
            odd.join("\n")
        )
    }

    /// Fails unless cloud-init is done, without an error, by this datasource.
    pub fn is_done_by(&self, datasource: &str, cloud: &str) {
        let result = self.result();
        let is_right = result["datasource"]
            .as_str()
            .is_some_and(|own| own.starts_with(datasource))
            && result["errors"] == serde_json::json!([])
            && self.status() == "status: done"
            && self.cloud_id() == cloud;
        assert!(is_right, "{}: {}", self.cloud_id(), self.story());
    }
}

fn list(config: &str) -> String {
    let line = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("datasource_list:"));
    let list = line.unwrap_or_default().trim_matches([' ', '[', ']']);
    list.to_owned()
}
