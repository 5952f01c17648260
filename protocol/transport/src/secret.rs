//! Files of private keys, which nobody else may read.

use std::{
    env, fmt,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{libc, unistd::geteuid};

/// Where systemd has the credentials of a service (`systemd.exec(5)`, Credentials).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Permissions of the group and of all others (`S_IRWXG | S_IRWXO`).
const OTHERS: u32 = 0o077;

/// Permission of the group to read (`S_IRGRP`).
const GROUP_READ: u32 = 0o040;

/// Reads the file of a private key, if it is a regular file that belongs to root or to the effective
/// user of this process and that nobody else has any permission for (as `StrictModes` of OpenSSH
/// wants it). It blocks on the file, and on nothing else that may have its name.
///
/// A service of another user than root gets its systemd credentials as root's files, by an access
/// control list whose mask is in the group's bits (`acl(5)`): mode 0440. So the group may read files in
/// `$CREDENTIALS_DIRECTORY` that are root's.
///
/// # Errors
///
/// What `open(2)` and `read(2)` say; `PermissionDenied` if it belongs to somebody else or others have
/// permissions, with the command that mends it; `InvalidInput` if it is no regular file.
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

/// Opens it, without waiting for the other end of a pipe.
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

        fn said(&self) -> String {
            read(&self.path, None).unwrap_err().to_string()
        }
    }

    impl Drop for Key {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_key_that_others_have_permissions_for_is_refused_with_what_mends_it() {
        let key = Key::new("mode");
        // What is around it makes no difference.
        fs::set_permissions(&key.folder, Permissions::from_mode(0o700)).unwrap();
        for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o777, 0o440] {
            key.set_mode(mode);
            let command = format!("chmod 600 {}", key.path.display());
            assert!(key.said().ends_with(&command), "{mode:o}: {}", key.said());
        }
        for mode in [0o600, 0o400, 0o700] {
            key.set_mode(mode);
            assert_eq!(read(&key.path, None).unwrap(), b"secret");
        }
    }

    #[test]
    fn a_key_of_somebody_else_is_refused_with_what_mends_it() {
        let key = Key::new("owner");
        key.set_owner(61234);
        let command = format!("chown 0 {}", key.path.display());
        assert!(key.said().ends_with(&command), "{}", key.said());
    }

    #[test]
    fn what_counts_is_the_file_and_not_a_link_to_it() {
        let key = Key::new("link");
        let link = key.folder.join("link");
        symlink("key", &link).unwrap();
        assert_eq!(read(&link, None).unwrap(), b"secret");
        key.set_mode(0o644);
        read(&link, None).unwrap_err();
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let key = Key::new("pipe");
        let pipe = key.folder.join("pipe");
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        for path in [&pipe, &key.folder] {
            let error = read(path, None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
    }

    #[test]
    fn the_group_may_read_a_credential_of_roots() {
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
