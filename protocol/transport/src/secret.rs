//! Private key files, which other users must not be able to read.

use std::{
    env, fmt,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{libc, unistd::geteuid};

/// Directory with the credentials of a systemd service (`systemd.exec(5)`, Credentials).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Permissions of the group and of all others (`S_IRWXG | S_IRWXO`).
const OTHERS: u32 = 0o077;

/// Permission of the group to read (`S_IRGRP`).
const GROUP_READ: u32 = 0o040;

/// Reads a private key file. It must be a regular file that belongs to root or to this process's
/// effective user, without permissions for anyone else (as OpenSSH requires of its keys). Blocks on a
/// regular file only: a FIFO is refused without waiting for its other end.
///
/// The credentials of a service of another user than root are root's files, readable through an access
/// control list whose mask shows in the group bits (`acl(5)`): mode 0440. So the group may read root's
/// files in `$CREDENTIALS_DIRECTORY`.
///
/// # Errors
///
/// Those of `open(2)` and `read(2)`; `PermissionDenied` with the command that fixes it if the owner or
/// the mode is wrong; `InvalidInput` if it is not a regular file.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let credentials = env::var_os(CREDENTIALS_VARIABLE);
    read(path, credentials.as_deref().map(Path::new))
}

fn read(path: &Path, credentials: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let is_credential = credentials.is_some() && path.parent() == credentials;
    check(path, &file.metadata()?, is_credential)?;
    let mut secret = Vec::new();
    file.read_to_end(&mut secret)?;
    Ok(secret)
}

/// Opens it, without waiting for the other end of a FIFO.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

fn check(path: &Path, metadata: &Metadata, is_credential: bool) -> io::Result<()> {
    let own = geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let path = path.display();
    if !metadata.is_file() {
        let error = "it is not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    if owner != 0 && owner != own {
        return refuse(format_args!(
            "it belongs to user {owner}: chown {own} {path}"
        ));
    }
    let allowed = if is_credential && owner == 0 {
        GROUP_READ
    } else {
        0
    };
    if mode & OTHERS & !allowed != 0 {
        return refuse(format_args!(
            "others have permissions, its mode is {mode:04o}: chmod 600 {path}"
        ));
    }
    Ok(())
}

fn refuse(why: fmt::Arguments<'_>) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        why.to_string(),
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, chown, symlink},
        path::PathBuf,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// A directory of its own with a key in it. `Drop` removes it.
    struct Key {
        folder: PathBuf,
        path: PathBuf,
    }

    impl Key {
        fn new(name: &str) -> Self {
            let folder = env::temp_dir().join(format!("key-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join("key");
            fs::write(&path, "secret").unwrap();
            let key = Self { folder, path };
            key.set_mode(0o600);
            key
        }

        fn set_mode(&self, mode: u32) {
            fs::set_permissions(&self.path, Permissions::from_mode(mode)).unwrap();
        }

        fn set_owner(&self, owner: u32) {
            chown(&self.path, Some(owner), None).expect("the tests of owners need root");
        }

        fn error(&self) -> String {
            read(&self.path, None).unwrap_err().to_string()
        }
    }

    impl Drop for Key {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_key_with_permissions_for_others_is_refused_with_the_fix() {
        let key = Key::new("mode");
        // The mode of the directory does not matter.
        fs::set_permissions(&key.folder, Permissions::from_mode(0o700)).unwrap();
        for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o777, 0o440] {
            key.set_mode(mode);
            let command = format!("chmod 600 {}", key.path.display());
            assert!(key.error().ends_with(&command), "{mode:o}: {}", key.error());
        }
        for mode in [0o600, 0o400, 0o700] {
            key.set_mode(mode);
            assert_eq!(read(&key.path, None).unwrap(), b"secret");
        }
    }

    #[test]
    fn a_key_of_another_user_is_refused_with_the_fix() {
        let key = Key::new("owner");
        key.set_owner(61234);
        let command = format!("chown 0 {}", key.path.display());
        assert!(key.error().ends_with(&command), "{}", key.error());
    }

    #[test]
    fn a_link_to_a_key_is_followed_and_the_key_checked() {
        let key = Key::new("link");
        let link = key.folder.join("link");
        symlink("key", &link).unwrap();
        assert_eq!(read(&link, None).unwrap(), b"secret");
        key.set_mode(0o644);
        read(&link, None).unwrap_err();
    }

    #[test]
    fn a_fifo_or_directory_is_refused_without_blocking() {
        let key = Key::new("pipe");
        let pipe = key.folder.join("pipe");
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        for path in [&pipe, &key.folder] {
            let error = read(path, None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
    }

    #[test]
    fn the_group_may_read_a_systemd_credential_of_root() {
        let key = Key::new("credential");
        let as_credential = || read(&key.path, Some(&key.folder));
        key.set_mode(0o440);
        assert_eq!(as_credential().unwrap(), b"secret");
        read(&key.path, key.folder.parent()).unwrap_err();
        for mode in [0o444, 0o460, 0o450] {
            key.set_mode(mode);
            as_credential().unwrap_err();
        }
        key.set_mode(0o440);
        key.set_owner(61234);
        as_credential().unwrap_err();
    }
}
