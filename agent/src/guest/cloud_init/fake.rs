//! Test fixture: a root directory with a fake cloud-init and systemd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::Datasource;

/// The root directory, removed on drop.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// A booting system in which cloud-init detected no datasource.
    pub(super) fn booting() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agent-redetect-{}-{number}", std::process::id());
        let root = Self(std::env::temp_dir().join(name));
        root.write("proc/cmdline", "quiet\n");
        root.write("proc/uptime", "12.34 5.67\n");
        root.write("proc/self/mounts", "/dev/vda1 / ext4 rw 0 0\n");
        root.write("run/cloud-init/disabled", "");
        for datasource in [Datasource::Lxd, Datasource::NoCloud] {
            root.write(datasource.paths()[0], "");
        }
        for folder in ["run/systemd/system", "etc/cloud"] {
            fs::create_dir_all(root.0.join(folder)).unwrap();
        }
        let generator = "usr/lib/systemd/system-generators/cloud-init-generator";
        root.program(generator, "exit 1");
        let identify = format!("echo \"ds-identify $*\" >> {}", root.log_file().display());
        root.program("usr/lib/cloud-init/ds-identify", &identify);
        root
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        let path = self.0.join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }

    /// Creates a shell script. Another process writes it: a child that another test starts meanwhile
    /// would inherit the open descriptor, and the script could not be run (`ETXTBSY`).
    pub(super) fn program(&self, path: &str, script: &str) {
        self.write(path, "");
        let status = Command::new("sh")
            .args([
                "-c",
                r#"printf '#!/bin/sh\n%s\n' "$1" > "$0"; chmod 755 "$0""#,
            ])
            .arg(self.0.join(path))
            .arg(script)
            .status();
        assert!(status.unwrap().success());
    }

    /// Creates a `systemctl` that shows these properties, and logs its other calls.
    pub(super) fn systemctl(&self, state: &str, begun: &str) {
        let script = format!(
            "case \"$*\" in\n*SystemState) echo {state};;\n*Inactive*) printf '{begun}\\n';;\n\
             *) echo \"$*\" >> {};;\nesac",
            self.log_file().display()
        );
        self.program("usr/bin/systemctl", &script);
    }

    /// The logged calls.
    pub(super) fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn log_file(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
