//! Debian's cloud-init, downloaded and unpacked, not installed: its Python, run as any user.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

/// cloud-init and what it imports, but for Python itself.
const PACKAGES: [&str; 18] = [
    "cloud-init",
    "python3-attr",
    "python3-certifi",
    "python3-chardet",
    "python3-charset-normalizer",
    "python3-configobj",
    "python3-idna",
    "python3-jinja2",
    "python3-json-pointer",
    "python3-jsonpatch",
    "python3-jsonschema",
    "python3-markupsafe",
    "python3-oauthlib",
    "python3-pyrsistent",
    "python3-requests",
    "python3-six",
    "python3-urllib3",
    "python3-yaml",
];

/// Says what the datasource LXD finds at the socket in the first argument. Only the path is another.
const READ: &str = "
import json, sys
import cloudinit.sources.DataSourceLXD as lxd
lxd.LXD_SOCKET_PATH = sys.argv[1]
text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
print(json.dumps(lxd.read_metadata(), default=text))
";

/// cloud-init, ready to run.
#[derive(Debug)]
pub struct CloudInit {
    packages: PathBuf,
}

impl CloudInit {
    /// Finds it in the lab, where it is put the first time.
    #[must_use]
    pub fn find() -> Self {
        static FOUND: LazyLock<PathBuf> = LazyLock::new(unpacked);
        Self {
            packages: FOUND.clone(),
        }
    }

    /// All that the datasource LXD reads from a socket.
    #[must_use]
    pub fn read_lxd(&self, socket: &Path) -> Value {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-W", "ignore", "-c", READ]).arg(socket);
        python.env("PYTHONPATH", &self.packages);
        let output = run(&mut python, &self.packages);
        serde_json::from_str(&output).unwrap()
    }
}

/// The folder of its Python.
fn unpacked() -> PathBuf {
    let folder = crate::vm::paths::lab().join("cloud-init");
    let packages = folder.join("usr/lib/python3/dist-packages");
    if !packages.join("yaml/__init__.py").exists() {
        // A download that was cut off left something.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let mut download = Command::new("apt-get");
        run(download.args(["-q", "download"]).args(PACKAGES), &folder);
        let unpack = "for package in *.deb; do dpkg-deb -x \"$package\" . || exit 1; done";
        run(Command::new("sh").args(["-c", unpack]), &folder);
    }
    packages
}

fn run(command: &mut Command, folder: &Path) -> String {
    let output = command.current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
