//! Canonical paths, by OpenSSH's rules (`sftp_realpath`, `sftp-realpath.c`): the last component need
//! not exist, and `..` removes the component before it.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, readlinkat},
    sys::stat::fstatat,
};

use super::{attributes, tree::Tree};

/// Most symbolic links in a path (`MAXSYMLINKS`, `sys/param.h`).
const MAX_LINKS: usize = 20;

/// Longest path, in bytes, with the NUL at its end (`PATH_MAX`, Linux `include/uapi/linux/limits.h`).
const MAX_PATH_BYTES: usize = 4096;

/// The canonical form of a path. A relative one starts at the tree's home.
///
/// # Errors
///
/// Errnos of components before the last one, `ELOOP` after [`MAX_LINKS`], `ENAMETOOLONG`.
pub(super) fn real_path(tree: &Tree, path: &[u8]) -> nix::Result<Vec<u8>> {
    // No system call takes it, nor does any other request.
    if path.len() >= MAX_PATH_BYTES {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut real = if path.starts_with(b"/") {
        b"/".to_vec()
    } else {
        tree.home().as_os_str().as_bytes().to_vec()
    };
    let mut left = path.to_vec();
    let mut links = 0;
    while !left.is_empty() {
        let slash = left.iter().position(|byte| *byte == b'/');
        let is_last = slash.is_none();
        let rest = left.split_off(slash.map_or(left.len(), |slash| slash + 1));
        if !is_last {
            left.pop();
        }
        let part = std::mem::replace(&mut left, rest);
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                go_up(&mut real);
                continue;
            }
            _ => {}
        }
        if !real.ends_with(b"/") {
            real.push(b'/');
        }
        real.extend_from_slice(&part);
        let entry = match tree.entry(&real) {
            Err(Errno::ENOENT) if is_last => return Ok(real),
            other => other?,
        };
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = match fstatat(entry.directory(), &*entry.name, flags) {
            Err(Errno::ENOENT) if is_last => return Ok(real),
            other => other?,
        };
        if !attributes::is_link(&stat) {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::ELOOP);
        }
        let mut target = readlinkat(entry.directory(), &*entry.name)?.into_vec();
        go_up(&mut real);
        if target.starts_with(b"/") {
            real = b"/".to_vec();
        }
        if !is_last {
            target.push(b'/');
            target.append(&mut left);
        }
        left = target;
    }
    if real.len() > 1 && real.ends_with(b"/") {
        real.pop();
    }
    Ok(real)
}

/// Removes the last component.
fn go_up(path: &mut Vec<u8>) {
    if path.len() > 1 && path.ends_with(b"/") {
        path.pop();
    }
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.truncate(slash + 1);
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    #[test]
    fn paths_are_canonicalized_as_openssh_does() {
        let folder = std::env::temp_dir().join(format!("agent-realpath-{}", std::process::id()));
        fs::create_dir_all(folder.join("d")).unwrap();
        let folder = folder.canonicalize().unwrap();
        fs::write(folder.join("f"), "").unwrap();
        symlink("f", folder.join("l")).unwrap();
        symlink("nowhere", folder.join("dangling")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        symlink("../d", folder.join("d/up")).unwrap();
        let tree = Tree::whole(&folder).unwrap();
        let real = |path: &str| {
            let real = real_path(&tree, path.as_bytes())?;
            Ok(PathBuf::from(std::ffi::OsString::from_vec(real)))
        };
        for (path, expected) in [
            ("", ""),
            (".", ""),
            ("f/", "f"),
            ("f/..", ""),
            ("nope", "nope"),
            ("dangling", "nowhere"),
            ("l", "f"),
            ("./d//../f", "f"),
            ("d/up/../f", "f"),
            ("d/up/up/x", "d/x"),
        ] {
            let expected = match expected {
                "" => folder.clone(),
                name => folder.join(name),
            };
            assert_eq!(real(path), Ok(expected), "{path}");
        }
        assert_eq!(real("//"), Ok("/".into()));
        assert_eq!(real("/../.."), Ok("/".into()));
        for path in ["nope/", "nope/x", "dangling/x"] {
            assert_eq!(real(path), Err(Errno::ENOENT), "{path}");
        }
        assert_eq!(real("f/x"), Err(Errno::ENOTDIR));
        assert_eq!(real("loop"), Err(Errno::ELOOP));
        fs::remove_dir_all(&folder).unwrap();
    }
}
