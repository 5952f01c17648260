use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use nix::unistd::setfsuid;

use super::*;

/// Who owns nothing (`nobody`).
const NOBODY: u32 = 65534;

/// A folder for everybody, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("parts-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Self(path)
    }

    /// The first name of a part of the target `a`.
    fn part(&self) -> PathBuf {
        self.0.join(part::part_name(OsStr::new("a")))
    }

    fn open(&self, keep: bool) -> (Part, u64) {
        let directory = Arc::new(LocalDirectory::open(&self.0).unwrap());
        directory.open_part(OsStr::new("a"), keep).unwrap()
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_part_that_is_for_reading_only_is_not_continued_and_goes() {
    let folder = Folder::new("read-only");
    let (length, left) = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            // Root may write to everything; this thread is not root any more.
            setfsuid(Uid::from_raw(NOBODY));
            fs::write(folder.part(), "text").unwrap();
            chmod(&folder.part(), 0o444);
            let (part, length) = folder.open(true);
            let left = fs::read(folder.part()).unwrap();
            drop(part);
            (length, left)
        });
        work.join().unwrap()
    });
    assert_eq!((length, &left[..], folder.names()), (0, &b""[..], 0));
}

#[test]
fn open_part_continues_or_truncates_a_leftover_part() {
    let folder = Folder::new("left");
    fs::write(folder.part(), "text").unwrap();
    let (part, length) = folder.open(true);
    assert_eq!((length, folder.names()), (4, 1));
    drop(part);
    assert_eq!(fs::read(folder.part()).unwrap(), b"text");
    let (part, length) = folder.open(false);
    assert_eq!((length, folder.names()), (0, 1));
    drop(part);
    assert_eq!(folder.names(), 0);
}

#[test]
fn an_empty_part_is_not_kept() {
    let folder = Folder::new("empty");
    drop(folder.open(true));
    assert_eq!(folder.names(), 0);
}

#[test]
fn a_part_that_a_copy_writes_is_left_alone() {
    let folder = Folder::new("busy");
    let (busy, _) = folder.open(true);
    busy.write(b"busy").unwrap();
    for keep in [false, true] {
        let (other, length) = folder.open(keep);
        assert_eq!((length, folder.names()), (0, 2));
        drop(other);
    }
    assert_eq!(fs::read(folder.part()).unwrap(), b"busy");
}

/// What is at the name of a part and is none stays, and is not written to.
fn is_not_taken(folder: &Folder, content: &[u8]) {
    for keep in [false, true] {
        let before = folder.names();
        let (part, length) = folder.open(keep);
        part.write(b"new").unwrap();
        assert_eq!((length, folder.names()), (0, before + 1));
        assert_eq!(fs::read(folder.part()).unwrap(), content);
        folder.open(false);
        drop(part);
        folder.open(false);
    }
}

#[test]
fn the_file_of_another_user_is_not_taken() {
    let folder = Folder::new("foreign");
    fs::write(folder.part(), "planted").unwrap();
    std::os::unix::fs::chown(folder.part(), Some(NOBODY), None).unwrap();
    is_not_taken(&folder, b"planted");
}

#[test]
fn a_file_with_another_name_is_not_taken() {
    let folder = Folder::new("linked");
    fs::write(folder.0.join("precious"), "precious").unwrap();
    fs::hard_link(folder.0.join("precious"), folder.part()).unwrap();
    is_not_taken(&folder, b"precious");
}

#[test]
fn a_link_is_not_followed() {
    let folder = Folder::new("symlink");
    fs::write(folder.0.join("precious"), "precious").unwrap();
    symlink("precious", folder.part()).unwrap();
    is_not_taken(&folder, b"precious");
}

#[test]
fn a_part_that_others_may_write_to_is_not_continued_and_goes() {
    let folder = Folder::new("shared");
    fs::write(folder.part(), "text").unwrap();
    chmod(&folder.part(), 0o666);
    let (_part, length) = folder.open(true);
    assert_eq!((length, folder.names()), (0, 1));
}

#[test]
fn a_link_is_made_whatever_has_the_name_of_its_part() {
    let folder = Folder::new("links");
    let directory = LocalDirectory::open(&folder.0).unwrap();
    let link = || directory.link(OsStr::new("to"), OsStr::new("a"), &Attributes::default());
    symlink("left", folder.part()).unwrap();
    link().unwrap();
    assert_eq!(folder.names(), 1);
    fs::write(folder.part(), "file").unwrap();
    link().unwrap();
    assert_eq!(fs::read_link(folder.0.join("a")).unwrap(), Path::new("to"));
    assert_eq!(fs::read(folder.part()).unwrap(), b"file");
}

#[test]
fn an_owner_that_nobody_is_is_refused() {
    let folder = Folder::new("nobody");
    let directory = LocalDirectory::open(&folder.0).unwrap();
    let file = File::create(folder.part()).unwrap();
    symlink("target", folder.0.join("link")).unwrap();
    let there = file.metadata().unwrap();
    for (uid, gid) in [(u32::MAX, there.gid()), (there.uid(), u32::MAX)] {
        let attributes = Attributes {
            owner: Some(Owner { uid, gid }),
            ..Attributes::default()
        };
        set_attributes(&file, &attributes).unwrap_err();
        directory
            .set_attributes(attributes.clone(), false)
            .unwrap_err();
        let link = OsStr::new("link");
        directory
            .set_link_attributes(link, &attributes)
            .unwrap_err();
    }
}
