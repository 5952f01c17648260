//! Options of a session: the query of `GET /1.0/sftp`.

const USER: &str = "user";
const ROOT: &str = "root";
const READ_ONLY: &str = "read-only";

/// Options of a session. By default it runs as the agent's user, may write, and sees
/// the whole file system.
///
/// An agent that does not know the query ignores it. One that does confirms it in VERSION, by the
/// extension [`super::extension::SESSION`] with the same text; a client that sent options must not go
/// on without it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Name or number of the user that the session runs as; relative paths start at their home.
    pub user: Option<String>,
    /// A directory, absolute, that is `/` for the session. Nothing outside it can be reached, but what
    /// is mounted in it belongs to it: a procfs there leads to all that the session's user may reach.
    pub root: Option<String>,
    /// Whether requests that change something are refused.
    pub read_only: bool,
}

/// An invalid query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionOptionsError {
    /// `root` is not absolute, or has a NUL byte.
    #[error("root must be an absolute path, not {0:?}")]
    Root(String),
    /// `user` is empty.
    #[error("user must be a name or a number")]
    User,
    /// `read-only` is neither `true` nor `false`.
    #[error("read-only must be true or false, not {0:?}")]
    ReadOnly(String),
}

impl SessionOptions {
    /// Sets the [`user`](Self::user).
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the [`root`](Self::root).
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Sets [`read_only`](Self::read_only).
    #[must_use]
    pub const fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether no option is set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The query, such as `user=alice&read-only=true`; empty for the default.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(user) = &self.user {
            query.append_pair(USER, user);
        }
        if let Some(root) = &self.root {
            query.append_pair(ROOT, root);
        }
        if self.read_only {
            query.append_pair(READ_ONLY, "true");
        }
        query.finish()
    }

    /// Parses a query. Parameters that are not known are ignored, as everywhere in the API; of one
    /// that comes twice the last holds.
    ///
    /// # Errors
    ///
    /// [`SessionOptionsError`].
    pub fn from_query(query: &str) -> Result<Self, SessionOptionsError> {
        let mut options = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                USER if value.is_empty() => return Err(SessionOptionsError::User),
                USER => options.user = Some(value.into_owned()),
                ROOT if value.starts_with('/') && !value.contains('\0') => {
                    options.root = Some(value.into_owned());
                }
                ROOT => return Err(SessionOptionsError::Root(value.into_owned())),
                READ_ONLY => {
                    options.read_only = match &*value {
                        "true" => true,
                        "false" => false,
                        _ => return Err(SessionOptionsError::ReadOnly(value.into_owned())),
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_are_written() {
        let options = SessionOptions {
            user: Some("a b&c=d".into()),
            root: Some("/srv/grün".into()),
            read_only: true,
        };
        assert_eq!(SessionOptions::from_query(&options.to_query()), Ok(options));
        assert_eq!(SessionOptions::default().to_query(), "");
        assert!(
            SessionOptions::from_query("project=x")
                .unwrap()
                .is_default()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for query in ["user=", "root=srv", "root=%2Fa%00", "root=", "read-only=1"] {
            SessionOptions::from_query(query).unwrap_err();
        }
    }
}
