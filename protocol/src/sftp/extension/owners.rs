//! Messages of OpenSSH's extension [`USERS_GROUPS_BY_ID`](super::USERS_GROUPS_BY_ID).

use bytes::Bytes;

use super::{MalformedExtension, Reader, put_strings, take_strings};

/// Request of [`USERS_GROUPS_BY_ID`](super::USERS_GROUPS_BY_ID).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdLists {
    /// User ids.
    pub users: Vec<u32>,
    /// Group ids.
    pub groups: Vec<u32>,
}

impl IdLists {
    /// The data of the request: two counted strings of numbers.
    ///
    /// # Panics
    ///
    /// When a list is longer than 2³⁰.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let list = |ids: &[u32]| {
            ids.iter()
                .flat_map(|id| id.to_be_bytes())
                .collect::<Vec<_>>()
        };
        put_strings(&[&list(&self.users), &list(&self.groups)])
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when the length of a list is no multiple of four.
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let list = |bytes: Bytes| -> Result<Vec<u32>, MalformedExtension> {
            let (ids, rest) = bytes.as_chunks::<4>();
            match rest {
                [] => Ok(ids.iter().map(|id| u32::from_be_bytes(*id)).collect()),
                _ => Err(MalformedExtension),
            }
        };
        let [users, groups] = take_strings(data)?;
        Ok(Self {
            users: list(users)?,
            groups: list(groups)?,
        })
    }
}

/// Answer to [`USERS_GROUPS_BY_ID`](super::USERS_GROUPS_BY_ID): a name for each id, in their order, empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameLists {
    /// Names of the users.
    pub users: Vec<Bytes>,
    /// Names of the groups.
    pub groups: Vec<Bytes>,
}

impl NameLists {
    /// The data of the reply: two counted strings of counted strings.
    ///
    /// # Panics
    ///
    /// When a list is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let list = |names: &[Bytes]| {
            let names: Vec<&[u8]> = names.iter().map(AsRef::as_ref).collect();
            put_strings(&names)
        };
        put_strings(&[&list(&self.users), &list(&self.groups)])
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let list = |bytes: Bytes| -> Result<Vec<Bytes>, MalformedExtension> {
            let mut reader = Reader(bytes);
            let mut names = Vec::new();
            while !reader.is_empty() {
                names.push(reader.string()?);
            }
            Ok(names)
        };
        let [users, groups] = take_strings(data)?;
        Ok(Self {
            users: list(users)?,
            groups: list(groups)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
        *,
    };

    #[test]
    fn lists_are_read_as_written_and_refused_when_cut() {
        let ids = IdLists {
            users: vec![0, 1000],
            groups: vec![7],
        };
        survives(ids.clone(), ids.encode(), IdLists::decode);
        let names = NameLists {
            users: vec![bytes("root"), Bytes::new()],
            groups: vec![bytes("g")],
        };
        survives(names.clone(), names.encode(), NameLists::decode);
    }
}
