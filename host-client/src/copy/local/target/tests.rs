use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use super::{super::super::part, *};

#[test]
fn a_part_gives_no_rights_that_the_file_does_not_give_whose_name_it_gets() {
    let folder = std::env::temp_dir().join(format!("rights-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let (file, name) = (folder.join("a"), OsStr::new("a"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let directory = Arc::new(LocalDirectory::open(&folder).unwrap());
    let how = Look {
        is_named: true,
        no_dereference: false,
    };
    let target = Target::look(&directory, name, how).unwrap();
    let (part, _) = directory.open_part(name, true).unwrap();
    part.write(b"new").unwrap();
    // It keeps its temporary name, so that it can be looked at.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let finish = Finish {
        fsync: false,
        in_place: false,
        replacement: Replacement::default(),
    };
    let attributes = Attributes {
        permissions: Some(0o644),
        ..Attributes::default()
    };
    let completed = part.complete(&target, &attributes, finish);
    assert!(
        matches!(completed, Err(CopyError::InTheWay)),
        "{completed:?}"
    );
    let left = fs::metadata(folder.join(part::part_name(name))).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(left.mode() & 0o7777, 0o600);
}

#[test]
fn a_file_that_another_copy_has_replaced_is_written_to_in_place() {
    let folder = std::env::temp_dir().join(format!("replaced-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let (file, name) = (folder.join("a"), OsStr::new("a"));
    fs::write(&file, "old").unwrap();
    let directory = Arc::new(LocalDirectory::open(&folder).unwrap());
    let how = Look {
        is_named: true,
        no_dereference: false,
    };
    let target = Target::look(&directory, name, how).unwrap();
    fs::write(folder.join("b"), "of the other copy").unwrap();
    fs::rename(folder.join("b"), &file).unwrap();
    let written = Part::in_place(&target).and_then(|part| part.write(b"new"));
    let content = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("b", &file).unwrap();
    let link = Part::in_place(&target);
    fs::remove_dir_all(&folder).unwrap();
    written.unwrap();
    assert_eq!(content, b"new");
    link.unwrap_err();
}
