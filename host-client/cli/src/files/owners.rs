//! Looks up the names of users and groups (`users-groups-by-id@openssh.com`).

use std::collections::{BTreeMap, BTreeSet};

use vsock_agent_client::{
    Sftp,
    protocol::{
        printable::excerpt,
        sftp::{Attributes, Owner, extension::USERS_GROUPS_BY_ID},
    },
};

/// Most ids in a request. The reply, with names of 32 bytes, is much smaller than a frame.
const IDS_AT_ONCE: usize = 1000;

/// Longest name that is not shortened (`LOGIN_NAME_MAX`).
const MAX_NAME_CHARS: usize = 256;

/// Names of users and groups by id, escaped.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Owners {
    /// Looks up the owners of all files. An owner has no name if the lookup fails.
    pub(super) async fn of<'a>(
        sftp: &Sftp,
        files: impl IntoIterator<Item = &'a Attributes>,
    ) -> Self {
        let mut names = Self::default();
        if !sftp.has_extension(USERS_GROUPS_BY_ID) {
            return names;
        }
        let owners = files.into_iter().filter_map(|file| file.owner);
        let (users, groups): (BTreeSet<u32>, BTreeSet<u32>) =
            owners.map(|owner| (owner.uid, owner.gid)).unzip();
        let (users, groups) = (Vec::from_iter(users), Vec::from_iter(groups));
        let count = users.len().max(groups.len());
        for start in (0..count).step_by(IDS_AT_ONCE) {
            let part = |ids: &[u32]| ids.iter().copied().skip(start).take(IDS_AT_ONCE).collect();
            let (users, groups): (Vec<u32>, Vec<u32>) = (part(&users), part(&groups));
            let Ok(found) = sftp.users_groups_by_id(&users, &groups).await else {
                return names;
            };
            for (names, ids, found) in [
                (&mut names.users, users, found.users),
                (&mut names.groups, groups, found.groups),
            ] {
                let pairs = ids.into_iter().zip(&found);
                let known = pairs.filter(|(_, name)| !name.is_empty());
                names.extend(known.map(|(id, name)| (id, excerpt(name, MAX_NAME_CHARS))));
            }
        }
        names
    }

    /// The name of a user, if it is known.
    pub(super) fn user(&self, id: u32) -> Option<&str> {
        self.users.get(&id).map(String::as_str)
    }

    /// The name of a group, if it is known.
    pub(super) fn group(&self, id: u32) -> Option<&str> {
        self.groups.get(&id).map(String::as_str)
    }

    /// User and group for a listing: names, else numbers.
    pub(super) fn columns(&self, attributes: &Attributes) -> [String; 2] {
        let Some(Owner { uid, gid }) = attributes.owner else {
            return ["?", "?"].map(str::to_owned);
        };
        let text = |name: Option<&str>, id: u32| name.map_or_else(|| id.to_string(), str::to_owned);
        [text(self.user(uid), uid), text(self.group(gid), gid)]
    }
}
