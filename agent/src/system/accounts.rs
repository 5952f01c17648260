//! Users and groups, read from `/etc/passwd` and `/etc/group`.
//!
//! The C library's look-up (NSS) loads libraries at run time, which a static binary cannot. So users of a
//! directory service are not found by name, only by number.

use std::{fs, io, path::Path};

use vsock_agent_protocol::id;

/// The contents of `/etc/passwd` and `/etc/group`.
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
    /// Reads the files. A missing file counts as empty: numbers need no entry.
    ///
    /// # Errors
    ///
    /// An existing file cannot be read.
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

    /// The groups of a user: `gid`, and those with the name as a member.
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
    /// Accounts with these contents of the files.
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
    fn a_user_has_its_own_group_and_those_with_it_as_a_member() {
        let accounts = Accounts::of(
            "",
            "a:x:10:\nb:x:11:ann,bob\nc:x:12:bobby\nd:x:13:bob\nb2:x:11:bob\n",
        );
        assert_eq!(accounts.groups_of("bob", 10), [10, 11, 13]);
    }

    #[test]
    fn invalid_lines_of_passwd_and_group_are_skipped() {
        let accounts = Accounts::of("\n#x\nbob:x:no:1::/:\nann:x:7:8::/home/ann:/bin/sh\n", "");
        assert_eq!(accounts.user_numbered(7).unwrap().name, "ann");
        assert_eq!(accounts.user_named("bob"), None);
    }

    #[test]
    fn minus_one_is_not_a_valid_uid_or_gid() {
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
    fn a_user_may_have_sixty_four_groups() {
        let group: String = (0..64).map(|gid| format!("g{gid}:x:{gid}:bob\n")).collect();
        assert_eq!(Accounts::of("", &group).groups_of("bob", 0).len(), 64);
    }
}
