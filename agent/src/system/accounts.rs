//! Users and groups, read from `/etc/passwd` and `/etc/group`.
//!
//! The agent is a static binary, and the C library's lookup (NSS) loads libraries at run time, so the two
//! files are read here. Users of a directory service are not found by name; their numbers work.

use std::{fs, io, path::Path};

use vsock_agent_protocol::id;

/// The contents of the two files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl Accounts {
    /// Reads the files. A missing one counts as empty, because numbers need no names.
    ///
    /// # Errors
    ///
    /// When an existing file cannot be read.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self {
            passwd: read(Path::new("/etc/passwd"))?,
            group: read(Path::new("/etc/group"))?,
        })
    }

    /// The user with this name.
    pub(crate) fn user_named(&self, name: &str) -> Option<User> {
        self.users().find(|user| user.name == name)
    }

    /// The first user with this number.
    pub(crate) fn user_numbered(&self, uid: u32) -> Option<User> {
        self.users().find(|user| user.uid == uid)
    }

    /// The number of the group with this name.
    pub(crate) fn group_named(&self, name: &str) -> Option<u32> {
        self.groups()
            .find(|group| group.name == name)
            .map(|group| group.gid)
    }

    /// The name of the first group with this number.
    pub(crate) fn group_numbered(&self, gid: u32) -> Option<String> {
        self.groups()
            .find(|group| group.gid == gid)
            .map(|group| group.name.to_owned())
    }

    /// The groups of a user: `gid`, and those that list the name as a member.
    pub(crate) fn groups_of(&self, name: &str, gid: u32) -> Vec<u32> {
        let mut gids = vec![gid];
        for group in self.groups() {
            if group.members.split(',').any(|member| member == name) && !gids.contains(&group.gid) {
                gids.push(group.gid);
            }
        }
        gids
    }

    fn users(&self) -> impl Iterator<Item = User> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
            let _password = fields.next()?;
            let uid = id::parse(fields.next()?)?;
            let gid = id::parse(fields.next()?)?;
            let _comment = fields.next()?;
            let home = fields.next()?.to_owned();
            let shell = fields.next().unwrap_or_default().to_owned();
            Some(User {
                name,
                uid,
                gid,
                home,
                shell,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let _password = fields.next()?;
            let gid = id::parse(fields.next()?)?;
            Some(Group {
                name,
                gid,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

/// One line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
impl Accounts {
    /// Accounts out of two texts.
    pub(crate) fn of(passwd: &str, group: &str) -> Self {
        Self {
            passwd: passwd.to_owned(),
            group: group.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_groups_that_list_it() {
        let accounts = Accounts::of(
            "",
            "a:x:10:\nb:x:11:ann,bob\nc:x:12:bobby\nd:x:13:bob\nb2:x:11:bob\n",
        );
        assert_eq!(accounts.groups_of("bob", 10), [10, 11, 13]);
    }

    #[test]
    fn a_broken_line_hides_no_other() {
        let accounts = Accounts::of("\n#x\nbob:x:no:1::/:\nann:x:7:8::/home/ann:/bin/sh\n", "");
        assert_eq!(accounts.user_numbered(7).unwrap().name, "ann");
        assert_eq!(accounts.user_named("bob"), None);
    }

    #[test]
    fn nobody_has_the_number_that_means_no_change() {
        let accounts = Accounts::of(
            "a:x:4294967295:1::/:\nb:x:1:4294967295::/:\n",
            "a:x:4294967295:b\n",
        );
        assert_eq!(accounts.user_named("a"), None);
        assert_eq!(accounts.user_named("b"), None);
        assert_eq!(accounts.group_named("a"), None);
        assert_eq!(accounts.groups_of("b", 1), [1]);
    }

    #[test]
    fn sixty_four_groups_are_all_found() {
        let group: String = (0..64).map(|gid| format!("g{gid}:x:{gid}:bob\n")).collect();
        assert_eq!(Accounts::of("", &group).groups_of("bob", 0).len(), 64);
    }
}
