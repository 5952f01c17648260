//! cloud-init and what it imports, downloaded once and unpacked, not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use super::run;
use crate::vm::paths;

/// Which cloud-init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12's: 22.4.2.
    Debian12,
    /// The newest that Debian has, on Debian 12's Python.
    Current,
}

/// Both.
pub const RELEASES: [Release; 2] = [Release::Debian12, Release::Current];

/// What cloud-init needs of Debian 12, but for Python itself.
const PACKAGES: [&str; 24] = [
    "ifupdown",
    "isc-dhcp-client",
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
    "python3-netifaces",
    "python3-oauthlib",
    "python3-pkg-resources",
    "python3-pyrsistent",
    "python3-jwt",
    "python3-requests",
    "python3-serial",
    "python3-six",
    "python3-urllib3",
    "python3-yaml",
    "procps",
];

/// Programs that ask Amazon's metadata service, and what they need.
const CLIENTS: [&str; 14] = [
    "amazon-ec2-utils",
    "cloud-guest-utils",
    "curl",
    "libcurl4",
    "python3-botocore",
    "python3-certifi",
    "python3-chardet",
    "python3-charset-normalizer",
    "python3-dateutil",
    "python3-idna",
    "python3-jmespath",
    "python3-requests",
    "python3-six",
    "python3-urllib3",
];

/// Where Debian's newest packages are.
const CURRENT_SUITE: &str = "sid";

impl Release {
    /// The folder with its files, as in `/`.
    #[must_use]
    pub fn layer(self) -> &'static Path {
        static DEBIAN_12: LazyLock<PathBuf> = LazyLock::new(|| unpacked(Release::Debian12));
        static CURRENT: LazyLock<PathBuf> = LazyLock::new(|| unpacked(Release::Current));
        match self {
            Self::Debian12 => &DEBIAN_12,
            Self::Current => &CURRENT,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian-12",
            Self::Current => "current",
        }
    }
}

/// The folder with programs that ask Amazon's metadata service, as in `/`: botocore,
/// `ec2-metadata` and `ec2metadata`.
#[must_use]
pub fn metadata_clients() -> &'static Path {
    static CLIENTS_LAYER: LazyLock<PathBuf> = LazyLock::new(|| {
        unpacked_from("metadata-clients", |folder| download(folder, &[], &CLIENTS))
    });
    &CLIENTS_LAYER
}

fn unpacked(release: Release) -> PathBuf {
    unpacked_from(release.name(), |folder| {
        download(folder, &[], &PACKAGES);
        match release {
            Release::Debian12 => download(folder, &[], &["cloud-init"]),
            Release::Current => download(folder, &current(folder), &["cloud-init"]),
        }
    })
}

/// The files of the packages that `download` puts into a folder of this name.
fn unpacked_from(name: &str, download: impl FnOnce(&Path)) -> PathBuf {
    let folder = paths::lab().join("cloud-init").join(name);
    let layer = folder.join("layer");
    if folder.join("complete").exists() {
        return layer;
    }
    // A download that was cut off left something.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&layer).unwrap();
    download(&folder);
    // `/bin` and the like are links, which folders of packages must not hide.
    let unpack = "for name in bin sbin lib; do mkdir -p layer/usr/$name; ln -s usr/$name layer/$name; done
        mkdir layer/etc layer/var
        for package in *.deb; do
            dpkg-deb --fsys-tarfile \"$package\" | tar -x -C layer --keep-directory-symlink || exit 1
        done";
    run(Command::new("sh").args(["-c", unpack]), &folder);
    fs::write(folder.join("complete"), "").unwrap();
    layer
}

fn download(folder: &Path, options: &[String], packages: &[&str]) {
    let mut download = Command::new("apt-get");
    download
        .args(options)
        .args(["-q", "download"])
        .args(packages);
    run(&mut download, folder);
}

/// Options by which apt knows of the newest packages, and that only here: from where Debian's own
/// come, whatever mirror that is.
fn current(folder: &Path) -> Vec<String> {
    let apt = folder.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part)).unwrap();
    }
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)"]);
    targets.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
    let uris = run(&mut targets, folder);
    let uri = uris
        .lines()
        .next()
        .expect("apt knows no Debian: run `make setup`");
    let source = format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {CURRENT_SUITE} main\n"
    );
    let list = apt.join("current.list");
    fs::write(&list, source).unwrap();
    let options = [
        format!("-oDir::Etc::sourcelist={}", list.display()),
        "-oDir::Etc::sourceparts=/dev/null".to_owned(),
        format!("-oDir::State::lists={}", apt.join("lists").display()),
        format!("-oDir::Cache={}", apt.join("cache").display()),
    ];
    run(
        Command::new("apt-get")
            .args(&options)
            .args(["-q", "update"]),
        folder,
    );
    options.to_vec()
}
