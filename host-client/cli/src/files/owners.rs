//! Names of owners, where the server can tell them.

use std::collections::{BTreeMap, BTreeSet};

use vsock_agent_client::{
    Sftp,
    protocol::{
        printable::excerpt,
        sftp::{Attributes, Owner, extension::USERS_GROUPS_BY_ID},
    },
};

/// Ids asked for at once: the answer, with names of 32 bytes, fits in a frame many times.
const IDS_AT_ONCE: usize = 1000;

/// Longest name that is shown whole (`LOGIN_NAME_MAX`).
const MAX_NAME_CHARS: usize = 256;

/// Names of users and groups, escaped.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Owners {
    /// Asks for the names of all owners. A server that does not know them leaves the numbers.
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
        let most = users.len().max(groups.len());
        for start in (0..most).step_by(IDS_AT_ONCE) {
            let part = |ids: &[u32]| ids.iter().copied().skip(start).take(IDS_AT_ONCE).collect();
            let (users, groups): (Vec<u32>, Vec<u32>) = (part(&users), part(&groups));
            let Ok(found) = sftp.users_groups_by_id(&users, &groups).await else {
                return names;
            };
            let known =
                |name: &bytes::Bytes| (!name.is_empty()).then(|| excerpt(name, MAX_NAME_CHARS));
            let pairs = |ids: Vec<u32>, names: &[bytes::Bytes]| -> Vec<(u32, String)> {
                let both = ids.into_iter().zip(names);
                both.filter_map(|(id, name)| Some((id, known(name)?)))
                    .collect()
            };
            names.users.extend(pairs(users, &found.users));
            names.groups.extend(pairs(groups, &found.groups));
        }
        names
    }

    /// The name of a user, if there is one.
    pub(super) fn user(&self, id: u32) -> Option<&str> {
        self.users.get(&id).map(String::as_str)
    }

    /// The name of a group, if there is one.
    pub(super) fn group(&self, id: u32) -> Option<&str> {
        self.groups.get(&id).map(String::as_str)
    }

    /// User and group as a listing shows them.
    pub(super) fn columns(&self, attributes: &Attributes) -> [String; 2] {
        let Some(Owner { uid, gid }) = attributes.owner else {
            return ["?", "?"].map(str::to_owned);
        };
        [
            self.user(uid)
                .map_or_else(|| uid.to_string(), str::to_owned),
            self.group(gid)
                .map_or_else(|| gid.to_string(), str::to_owned),
        ]
    }
}
