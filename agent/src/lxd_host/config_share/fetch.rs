//! Copies the config share from the host's device: virtiofs, 9p, or a CD-ROM.
//!
//! The unit runs this before the agent in a process of its own, so that a hanging thread ends with it. The
//! copy is in memory and readable by root. It is kept if the device is missing at the next start.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{TMPFS_MAGIC, statfs},
};

use super::FETCHED;
use crate::system::bounded;

/// The working directory: `mnt` is a temporary mount point, `new` is renamed to `share`.
const FOLDER: &str = "/run/vsock-agent";

/// Mount options of the tmpfs. Rendered templates need most of its size.
const MEMORY: &str = "mode=0700,size=64m";

/// The files to copy: all but the agent.
const FILES: [&str; 7] = [
    "agent.crt",
    "agent.key",
    "server.crt",
    "agent.conf",
    "agent-mounts.json",
    "files",
    "nics",
];

/// A directory without this file is not a config share.
const CERTIFICATE: &str = "agent.crt";

/// The tag of the share, with LXD and Incus.
const TAG: &str = "config";

/// File systems and their mount options (`Documentation/filesystems/9p.rst`).
const SHARES: [(&str, &str); 2] = [
    ("virtiofs", ""),
    ("9p", "trans=virtio,version=9p2000.L,access=0,msize=1048576"),
];

/// Labels of a CD-ROM with the share. The first is Incus's.
const LABELS: [&str; 2] = ["incus-agent", "vsock-agent"];

/// Offset of the label of an ISO 9660 image: `volume_id` of `struct iso_primary_descriptor`
/// (`include/uapi/linux/iso_fs.h`), 40 bytes into the 17th sector.
const LABEL_OFFSET: u64 = 16 * 2048 + 40;
const LABEL_BYTES: usize = 32;

/// Flags of all mounts.
const FLAGS: MsFlags = MsFlags::MS_NODEV
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NOSUID);

/// Time limit of the copy. The boot may be waiting for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the share was not copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FetchError {
    /// The working directory cannot be set up.
    #[error("cannot prepare {FOLDER}")]
    Prepare(#[source] io::Error),
    /// The copy failed.
    #[error("cannot copy the config share")]
    Copy(#[source] io::Error),
    /// A device does not respond within 10 s.
    #[error("copying the config share timed out")]
    TimedOut,
}

/// Copies the config share of the host to `/run/vsock-agent/share`. False if the host provides none; an
/// earlier copy is kept then.
///
/// # Errors
///
/// [`FetchError`]. An earlier copy is kept.
pub(crate) async fn fetch_config_share() -> Result<bool, FetchError> {
    let work = || {
        let folder = Path::new(FOLDER);
        prepare(folder).map_err(FetchError::Prepare)?;
        fetch(folder, &sources()).map_err(FetchError::Copy)
    };
    let result = bounded::within(FETCH_TIMEOUT, "config share", work).await;
    result.unwrap_or(Err(FetchError::TimedOut))
}

/// A device to look for the share on.
#[derive(Debug)]
struct Source {
    kind: &'static str,
    device: PathBuf,
    options: &'static str,
}

fn sources() -> Vec<Source> {
    let shares = SHARES.iter().map(|(kind, options)| Source {
        kind,
        device: PathBuf::from(TAG),
        options,
    });
    let discs = discs().into_iter().map(|device| Source {
        kind: "iso9660",
        device,
        options: "",
    });
    shares.chain(discs).collect()
}

/// CD-ROMs with one of [`LABELS`]. An empty drive cannot be opened.
fn discs() -> Vec<PathBuf> {
    let drives = fs::read_dir("/sys/class/block").into_iter().flatten();
    let drives = drives.flatten().map(|drive| drive.file_name());
    let mut drives: Vec<_> = drives
        .filter(|name| name.as_encoded_bytes().starts_with(b"sr"))
        .map(|name| Path::new("/dev").join(name))
        .collect();
    drives.sort();
    drives.retain(|drive| label(drive).is_ok_and(|label| LABELS.contains(&label.as_str())));
    drives
}

fn label(device: &Path) -> io::Result<String> {
    let mut label = [0; LABEL_BYTES];
    File::open(device)?.read_exact_at(&mut label, LABEL_OFFSET)?;
    Ok(String::from_utf8_lossy(&label).trim_end().to_owned())
}

/// Creates a directory, and missing ones above it, with mode 0700.
fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)
}

/// Mounts a tmpfs that only root can access.
fn prepare(folder: &Path) -> io::Result<()> {
    create_private(folder)?;
    let is_mounted = statfs(folder)?.filesystem_type() == TMPFS_MAGIC && is_mount(folder)?;
    if !is_mounted {
        mount(Some("tmpfs"), folder, Some("tmpfs"), FLAGS, Some(MEMORY))?;
    }
    Ok(())
}

/// Whether a directory is a mount point: its device differs from its parent's.
fn is_mount(folder: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = folder.parent().unwrap_or(folder);
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

/// Copies the first source that is a config share.
fn fetch(folder: &Path, sources: &[Source]) -> io::Result<bool> {
    let mnt = folder.join("mnt");
    create_private(&mnt)?;
    for source in sources {
        let flags = FLAGS | MsFlags::MS_RDONLY;
        let options = Some(source.options);
        if let Err(error) = mount(
            Some(&source.device),
            &mnt,
            Some(source.kind),
            flags,
            options,
        ) {
            tracing::debug!(?source, %error, "cannot mount a config share");
            continue;
        }
        let _mounted = Mounted(&mnt);
        if mnt.join(CERTIFICATE).exists() {
            replace(&mnt, folder)?;
            tracing::info!(kind = source.kind, device = ?source.device, "config share copied");
            return Ok(true);
        }
        tracing::debug!(?source, "not a config share");
    }
    Ok(false)
}

/// A mount point that is unmounted on drop.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::MNT_DETACH) {
            tracing::warn!(path = ?self.0, %error, "cannot unmount the config share");
        }
    }
}

/// Replaces the copy.
fn replace(from: &Path, folder: &Path) -> io::Result<()> {
    let new = folder.join("new");
    let share = folder.join(Path::new(FETCHED).file_name().unwrap_or_default());
    remove(&new)?;
    create_private(&new)?;
    for name in FILES {
        copy(&from.join(name), &new.join(name))?;
    }
    remove(&share)?;
    fs::rename(&new, &share)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies a file or a directory with its content. Copies have mode 0600 or 0700. Other types and missing files
/// are skipped.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if metadata.is_file() {
        let mut copy = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        io::copy(&mut File::open(from)?, &mut copy)?;
    } else if metadata.is_dir() {
        create_private(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::lxd_host::config_share::alone::with_own_mounts;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn share(folder: &Path, host: &str) {
        fs::create_dir_all(folder.join("files")).unwrap();
        fs::write(folder.join("agent.crt"), host).unwrap();
        fs::write(folder.join("files/a.out"), host).unwrap();
        let mode = fs::Permissions::from_mode(0o555);
        fs::set_permissions(folder.join("agent.crt"), mode).unwrap();
        fs::write(folder.join("lxd-agent"), "a program").unwrap();
        let link = folder.join("agent.key");
        let _ = fs::remove_file(&link);
        symlink("/etc/shadow", link).unwrap();
    }

    #[test]
    fn the_files_of_a_config_share_are_copied_and_replace_the_old_copy() {
        let folder = std::env::temp_dir().join(format!("agent-fetch-{}", std::process::id()));
        let from = folder.join("from");
        for host in ["1", "2"] {
            share(&from, host);
            replace(&from, &folder).unwrap();
            let copied = folder.join("share");
            assert_eq!(names(&copied), ["agent.crt", "files"]);
            let file = copied.join("files/a.out");
            assert_eq!(fs::read_to_string(&file).unwrap(), host);
            for file in [file, copied.join("agent.crt")] {
                let mode = fs::metadata(file).unwrap().permissions().mode();
                assert_eq!(mode & 0o7777, 0o600);
            }
        }
        assert_eq!(names(&folder), ["from", "share"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn without_a_config_share_the_old_copy_is_kept_and_nothing_stays_mounted() {
        with_own_mounts("fetch-none", |folder| {
            let folder = folder.join("run");
            prepare(&folder).unwrap();
            prepare(&folder).unwrap();
            fs::create_dir(folder.join("share")).unwrap();
            let source = |kind| Source {
                kind,
                device: PathBuf::from("agent-test-tag"),
                options: "",
            };
            let sources = ["virtiofs", "9p", "tmpfs"].map(source);
            assert!(!fetch(&folder, &sources).unwrap());
            assert!(!is_mount(&folder.join("mnt")).unwrap());
            assert_eq!(names(&folder), ["mnt", "share"]);
            umount2(&folder, MntFlags::empty()).expect("it was mounted once");
            assert!(!is_mount(&folder).unwrap());
        });
    }

    #[test]
    fn a_cd_rom_is_identified_by_its_label() {
        let path = std::env::temp_dir().join(format!("agent-disc-{}", std::process::id()));
        let mut image = vec![0; 40 * 1024];
        let text = format!("{:LABEL_BYTES$}", "incus-agent");
        image[32808..32840].copy_from_slice(text.as_bytes());
        fs::write(&path, &image).unwrap();
        assert_eq!(label(&path).unwrap(), "incus-agent");
        fs::write(&path, &image[..32820]).unwrap();
        label(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
    }
}
