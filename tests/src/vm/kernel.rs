//! The guest's kernel: Debian's own for clouds, unpacked, not installed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{VmError, command::run, paths};

/// The package whose only content is a dependency on the newest kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the guest loads, in the order that loads: a module stands after all that it takes symbols
/// from. Paths are below the package's `kernel/`.
const MODULES: [&str; 9] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
    "net/vmw_vsock/vsock_loopback.ko",
];

/// A kernel and the modules it needs in the lab.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// In the order that loads.
    pub(super) modules: Vec<PathBuf>,
}

/// Gives the kernel, which is downloaded the first time and kept until somebody deletes it.
pub(super) async fn prepare() -> Result<Kernel, VmError> {
    let folder = paths::lab().join("kernel");
    if !folder.exists() {
        download(&folder).await?;
    }
    let modules = MODULES.map(|path| folder.join(file_name(path)));
    Ok(Kernel {
        image: folder.join("vmlinuz"),
        modules: modules.into(),
    })
}

/// Fills `folder`, which appears only when it is whole.
async fn download(folder: &Path) -> Result<(), VmError> {
    let work = folder.with_extension(format!("{}", std::process::id()));
    let unpacked = work.join("unpacked");
    let whole = work.join("whole");
    for path in [&unpacked, &whole] {
        fs::create_dir_all(path).map_err(VmError::io(format!("creating {}", path.display())))?;
    }

    let depends = run(Command::new("apt-cache").args(["depends", META_PACKAGE])).await?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or_else(|| VmError::missing(format!("the Debian package {META_PACKAGE}")))?;
    run(Command::new("apt-get")
        .args(["-q", "download", package])
        .current_dir(&work))
    .await?;
    let archive = find(&work, |name| name.ends_with(".deb"))?;
    run(Command::new("dpkg-deb")
        .arg("-x")
        .args([&archive, &unpacked]))
    .await?;

    let image = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let modules = find(&unpacked.join("lib/modules"), |_| true)?.join("kernel");
    copy(&image, &whole.join("vmlinuz"))?;
    for path in MODULES {
        copy(&modules.join(path), &whole.join(file_name(path)))?;
    }

    match fs::rename(&whole, folder) {
        // Somebody else was faster: theirs is as good.
        Err(_) if folder.exists() => {}
        renamed => renamed.map_err(VmError::io(format!("creating {}", folder.display())))?,
    }
    fs::remove_dir_all(&work).map_err(VmError::io(format!("removing {}", work.display())))
}

fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf, VmError> {
    let entries: Vec<_> = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<_>>)
        .map_err(VmError::io(format!("reading {}", folder.display())))?;
    entries
        .into_iter()
        .find(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .ok_or_else(|| VmError::missing(format!("a file of the kernel in {}", folder.display())))
}

fn copy(from: &Path, to: &Path) -> Result<(), VmError> {
    fs::copy(from, to)
        .map(drop)
        .map_err(VmError::io(format!("copying {}", from.display())))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
