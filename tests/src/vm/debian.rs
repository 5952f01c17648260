//! Debian 12 with systemd and cloud-init, made of unmodified packages: a disk, and the kernel in it.
//!
//! mmdebstrap takes the packages from where this computer's apt takes them. What it makes is kept
//! below `target/lab/`, by what it was made from.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process,
};

use nix::unistd::Uid;
use tokio::{process::Command, sync::OnceCell};

use super::{VmError, command::run, paths};

/// The release.
const SUITE: &str = "bookworm";

/// What is in it beyond the essential packages, and what those need.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,cloud-init,linux-image-cloud-amd64,kmod,\
                        iproute2,ifupdown,isc-dhcp-client,openssh-server,locales,procps";

/// Makes the disk from the archive, as root: files keep their owners. 546 MB of it are used.
const UNPACK: &str = "mkdir root
tar -xf root.tar -C root
cp root/boot/vmlinuz-* whole/vmlinuz
cp root/boot/initrd.img-* whole/initramfs
chmod 644 whole/vmlinuz whole/initramfs
mke2fs -q -t ext4 -L root -d root whole/disk 2G
rm -r root root.tar";

/// Where it is.
#[derive(Clone, Debug)]
pub(super) struct Debian {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// A whole disk of ext4, to be copied.
    pub(super) disk: PathBuf,
}

impl Debian {
    /// Gives it; made the first time, which takes one to five minutes.
    pub(super) async fn prepare() -> Result<&'static Self, VmError> {
        static DEBIAN: OnceCell<Debian> = OnceCell::const_new();
        DEBIAN
            .get_or_try_init(async || {
                let mut key = DefaultHasher::new();
                (SUITE, PACKAGES, UNPACK).hash(&mut key);
                let folder = paths::lab().join(format!("debian-{:016x}", key.finish()));
                if !folder.exists() {
                    make(&folder).await?;
                }
                Ok(Self {
                    kernel: folder.join("vmlinuz"),
                    initramfs: folder.join("initramfs"),
                    disk: folder.join("disk"),
                })
            })
            .await
    }
}

/// Fills `folder`, which appears only when it is whole.
async fn make(folder: &Path) -> Result<(), VmError> {
    let work = folder.with_extension(format!("{}", process::id()));
    let whole = work.join("whole");
    fs::create_dir_all(&whole).map_err(VmError::io(format!("creating {}", whole.display())))?;
    let include = format!("--include={PACKAGES}");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase", &include, SUITE, "root.tar"])
        .args(sources().await?);
    run(mmdebstrap.current_dir(&work)).await?;
    let unpack = ["sh", "-ec", UNPACK];
    let mut shell = if Uid::effective().is_root() {
        Command::new("env")
    } else {
        Command::new("mmdebstrap")
    };
    if !Uid::effective().is_root() {
        // A user namespace in which this user is root.
        shell.arg("--unshare-helper");
    }
    run(shell.args(unpack).current_dir(&work)).await?;
    match fs::rename(&whole, folder) {
        // Somebody else was faster: theirs is as good.
        Err(_) if folder.exists() => {}
        renamed => renamed.map_err(VmError::io(format!("creating {}", folder.display())))?,
    }
    fs::remove_dir_all(&work).map_err(VmError::io(format!("removing {}", work.display())))
}

/// Lines of `sources.list` for what apt here knows of this release.
async fn sources() -> Result<Vec<String>, VmError> {
    let format = "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI) $(RELEASE)";
    let targets = ["indextargets", "--format", format, "Created-By: Packages"];
    let known = run(Command::new("apt-get").args(targets)).await?;
    let lines: Vec<_> = known.lines().filter_map(source).collect();
    if lines.is_empty() {
        Err(VmError::missing("an apt source of Debian 12"))
    } else {
        Ok(lines)
    }
}

fn source(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let origin_and_more = [words.next()?, words.next()?, words.next()?];
    let ["Debian", codename, "main"] = origin_and_more else {
        return None;
    };
    let [uri, release] = [words.next()?, words.next()?];
    let wanted = ["", "-updates", "-security"].map(|pocket| format!("{SUITE}{pocket}"));
    wanted
        .iter()
        .any(|name| name == codename)
        .then(|| format!("deb {uri} {release} main"))
}
