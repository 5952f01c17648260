//! Debian's cloud-init, downloaded and unpacked, not installed: its Python, run as any user, or all
//! of it in a [`Guest`].

mod guest;
mod packages;

use std::{path::Path, process::Command};

use serde_json::Value;

pub use self::{
    guest::{Booted, Guest, Hints},
    packages::{RELEASES, Release, metadata_clients},
};

/// Says what the datasource LXD finds at the socket in the first argument. Only the path is another.
const READ: &str = "
import json, sys
import cloudinit.sources.DataSourceLXD as lxd
lxd.LXD_SOCKET_PATH = sys.argv[1]
text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
print(json.dumps(lxd.read_metadata(), default=text))
";

impl Release {
    /// All that the datasource LXD reads from a socket.
    #[must_use]
    pub fn read_lxd(self, socket: &Path) -> Value {
        let packages = self.layer().join("usr/lib/python3/dist-packages");
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-W", "ignore", "-c", READ]).arg(socket);
        python.env("PYTHONPATH", &packages);
        let output = run(&mut python, &packages);
        serde_json::from_str(&output).unwrap()
    }
}

fn run(command: &mut Command, folder: &Path) -> String {
    let output = command.current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
