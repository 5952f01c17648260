use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use nix::{fcntl::open, unistd::chown};

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("replace-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Replaces `target` by a new file of this mode.
    fn replace(&self, options: Replacement, mode: u32) -> io::Result<Result<(), InPlace>> {
        self.replace_by("part", options, mode)
    }

    fn replace_by(
        &self,
        part: &str,
        options: Replacement,
        mode: u32,
    ) -> io::Result<Result<(), InPlace>> {
        let path = self.0.join(part);
        fs::write(&path, "new").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let directory = open(&self.0, OFlag::O_PATH, Mode::empty()).unwrap();
        let at = |name| At {
            directory: directory.as_fd(),
            name,
        };
        replace(
            &File::open(path).unwrap(),
            &at(part),
            &at("target"),
            options,
        )
    }

    fn target(&self) -> PathBuf {
        self.0.join("target")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_replacement_takes_over_the_mode_and_attributes_but_not_those_of_the_content() {
    let folder = Folder::new("attributes");
    fs::write(folder.target(), "old").unwrap();
    fs::set_permissions(folder.target(), fs::Permissions::from_mode(0o2640)).unwrap();
    xattr::set(folder.target(), "user.note", b"kept").unwrap();
    folder
        .replace(Replacement::default(), 0o644)
        .unwrap()
        .unwrap();
    assert_eq!(fs::read(folder.target()).unwrap(), b"new");
    assert_eq!(
        fs::metadata(folder.target()).unwrap().mode() & 0o7777,
        0o2640
    );
    let note = xattr::get(folder.target(), "user.note").unwrap();
    assert_eq!(note.as_deref(), Some(&b"kept"[..]));

    let sets_mode = Replacement {
        sets_mode: true,
        ..Replacement::default()
    };
    folder.replace(sets_mode, 0o644).unwrap().unwrap();
    assert_eq!(
        fs::metadata(folder.target()).unwrap().mode() & 0o7777,
        0o644
    );
}

#[test]
fn concurrent_replacements_all_succeed() {
    let folder = Folder::new("rivals");
    fs::write(folder.target(), "old").unwrap();
    let replace = |part| {
        for _ in 0..1000 {
            let replaced = folder.replace_by(part, Replacement::default(), 0o644);
            replaced.unwrap().unwrap();
        }
    };
    std::thread::scope(|scope| {
        for part in ["one", "other", "third"] {
            scope.spawn(move || replace(part));
        }
    });
}

#[test]
fn the_owner_is_kept_with_the_right_to_change_it() {
    let folder = Folder::new("owner");
    fs::write(folder.target(), "old").unwrap();
    let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65533));
    chown(&folder.target(), Some(user), Some(group)).expect("this test needs root");
    folder
        .replace(Replacement::default(), 0o644)
        .unwrap()
        .unwrap();
    let now = fs::metadata(folder.target()).unwrap();
    assert_eq!((now.uid(), now.gid()), (65534, 65533));
    assert_eq!(fs::read(folder.target()).unwrap(), b"new");
}

#[test]
fn a_target_that_cannot_be_replaced_is_unchanged() {
    let folder = Folder::new("in-place");
    fs::write(folder.target(), "old").unwrap();
    fs::hard_link(folder.target(), folder.0.join("other")).unwrap();
    let replaced = folder.replace(Replacement::default(), 0o644).unwrap();
    assert_eq!(replaced, Err(InPlace::HardLinks));
    assert_eq!(fs::read(folder.target()).unwrap(), b"old");

    fs::remove_file(folder.target()).unwrap();
    nix::unistd::mkfifo(&folder.target(), Mode::S_IRWXU).unwrap();
    let replaced = folder.replace(Replacement::default(), 0o644).unwrap();
    assert_eq!(replaced, Err(InPlace::NotRegular));

    fs::remove_file(folder.target()).unwrap();
    symlink("other", folder.target()).unwrap();
    let leaves_links = Replacement {
        leaves_links: true,
        ..Replacement::default()
    };
    let replaced = folder.replace(leaves_links, 0o644).unwrap();
    assert_eq!(replaced, Err(InPlace::NotRegular));
    folder
        .replace(Replacement::default(), 0o644)
        .unwrap()
        .unwrap();
    assert!(folder.target().symlink_metadata().unwrap().is_file());
}

/// An ACL (`linux/posix_acl_xattr.h`) that lets another user and the owner write, and all read.
fn acl() -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, NONE),
        (0x02, 6, 65534),
        (0x04, 4, NONE),
        (0x10, 6, NONE),
        (0x20, 4, NONE),
    ];
    let entry = |(tag, rights, id): (u16, u16, u32)| {
        let [tag, rights] = [tag, rights].map(u16::to_le_bytes);
        [&tag[..], &rights, &id.to_le_bytes()].concat()
    };
    let version = 2_u32.to_le_bytes().to_vec();
    [vec![version], entries.map(entry).to_vec()]
        .concat()
        .concat()
}

#[test]
fn a_mode_that_was_set_is_kept() {
    let folder = Folder::new("options-mode");
    let options = Replacement {
        sets_mode: true,
        ..Replacement::default()
    };
    let mode = || fs::metadata(folder.target()).unwrap().mode() & 0o7777;
    fs::write(folder.target(), "old").unwrap();
    xattr::set(folder.target(), ACL, &acl()).unwrap();
    assert_eq!(mode(), 0o664);
    folder.replace(options, 0o640).unwrap().unwrap();
    assert_eq!(mode(), 0o640);

    let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65533));
    chown(&folder.target(), Some(user), Some(group)).expect("this test needs root");
    folder.replace(options, 0o4755).unwrap().unwrap();
    assert_eq!(mode(), 0o4755);
}

#[test]
fn a_part_removed_before_it_was_locked_is_not_used() {
    let folder = Folder::new("removed");
    let file = File::create(folder.0.join("part")).unwrap();
    assert!(part::is_own(&file));
    fs::remove_file(folder.0.join("part")).unwrap();
    assert!(!part::is_own(&file));
}

#[test]
fn special_bits_are_not_copied_to_another_owner() {
    let folder = Folder::new("special-bits");
    fs::write(folder.target(), "old").unwrap();
    fs::set_permissions(folder.target(), fs::Permissions::from_mode(0o6755)).unwrap();
    let sets_owner = Replacement {
        sets_owner: true,
        ..Replacement::default()
    };
    folder.replace(sets_owner, 0o600).unwrap().unwrap();
    let now = fs::metadata(folder.target()).unwrap();
    assert_eq!(now.mode() & 0o7777, 0o755);
}

#[test]
fn a_default_acl_of_the_directory_does_not_replace_the_old_files() {
    let folder = Folder::new("default-acl");
    fs::write(folder.target(), "old").unwrap();
    fs::set_permissions(folder.target(), fs::Permissions::from_mode(0o660)).unwrap();
    xattr::set(&folder.0, "system.posix_acl_default", &acl()).unwrap();
    folder
        .replace(Replacement::default(), 0o660)
        .unwrap()
        .unwrap();
    assert_eq!(xattr::get(folder.target(), ACL).unwrap(), None);
    let now = fs::metadata(folder.target()).unwrap();
    assert_eq!(now.mode() & 0o7777, 0o660);
}

#[test]
fn capabilities_are_not_copied_to_new_content() {
    // `struct vfs_cap_data` (`linux/capability.h`): revision 2, effective, CAP_CHOWN permitted.
    let capabilities = [0x0200_0001_u32, 1, 0, 0, 0].map(u32::to_le_bytes).concat();
    let folder = Folder::new("capabilities");
    fs::write(folder.target(), "old").unwrap();
    xattr::set(folder.target(), CONTENT_XATTRS[0], &capabilities).expect("this test needs root");
    folder
        .replace(Replacement::default(), 0o755)
        .unwrap()
        .unwrap();
    let now = xattr::get(folder.target(), CONTENT_XATTRS[0]).unwrap();
    assert_eq!(now, None);
}
