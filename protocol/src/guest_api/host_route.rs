//! The routes of LXD's `devlxd` that the agent forwards to the host.

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::RESERVED;

/// The feature of a route. LXD switches each of them on or off, for the host or for an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostFeature {
    /// Whether the guest may have a token ([`UbuntuPro`]).
    UbuntuPro,
    /// A token for Ubuntu Pro.
    UbuntuProToken,
    /// Images of the host. Replies are files, and errors in an envelope.
    ImageExport,
    /// Storage volumes, and the instance they are attached to.
    Volumes,
    /// Waiting for an operation on volumes, with an answer when that has ended.
    VolumesWait,
}

impl HostFeature {
    /// LXD's error text, with status 403, when it is off. For [`Self::UbuntuPro`] LXD replies with
    /// [`UbuntuPro::off`] instead.
    #[must_use]
    pub const fn refusal(self) -> &'static str {
        match self {
            Self::UbuntuProToken => {
                "Failed to get an Ubuntu Pro guest token: Guest attachment not allowed"
            }
            _ => "Forbidden",
        }
    }
}

/// The reply to `GET /1.0/ubuntu-pro`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UbuntuPro {
    /// `on`, `available` or `off`.
    pub guest_attach: String,
}

impl UbuntuPro {
    /// The guest gets no token.
    #[must_use]
    pub fn off() -> Self {
        Self {
            guest_attach: "off".to_owned(),
        }
    }
}

/// A path that is one of these routes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostRoute {
    /// The path for the host. Names in it are escaped anew, so that it is this route for every
    /// reader of paths: no name in it is empty, `.` or `..`, or has a slash or a control character.
    pub path: String,
    /// The methods that the route has, as in the header `Allow`.
    pub allow: &'static str,
    /// The feature.
    pub feature: HostFeature,
}

/// Paths below `/1.0/`, where `*` is any name. In LXD since 5.21.4 and 6.3 (`ubuntu-pro`), and 6.5 to
/// 6.9 (volumes); `images` is older.
const ROUTES: [(&str, &str, HostFeature); 12] = [
    ("ubuntu-pro", "GET, HEAD", HostFeature::UbuntuPro),
    ("ubuntu-pro/token", "POST", HostFeature::UbuntuProToken),
    ("images/*/export", "GET, HEAD", HostFeature::ImageExport),
    ("instances/*", "GET, HEAD, PATCH", HostFeature::Volumes),
    ("operations/*", "DELETE", HostFeature::Volumes),
    ("operations/*/wait", "GET, HEAD", HostFeature::VolumesWait),
    ("storage-pools/*", "GET, HEAD", HostFeature::Volumes),
    (
        "storage-pools/*/volumes",
        "GET, HEAD, POST",
        HostFeature::Volumes,
    ),
    (
        "storage-pools/*/volumes/*",
        "GET, HEAD, POST",
        HostFeature::Volumes,
    ),
    (
        "storage-pools/*/volumes/*/*",
        "GET, HEAD, PATCH, DELETE",
        HostFeature::Volumes,
    ),
    (
        "storage-pools/*/volumes/*/*/snapshots",
        "GET, HEAD, POST",
        HostFeature::Volumes,
    ),
    (
        "storage-pools/*/volumes/*/*/snapshots/*",
        "GET, HEAD, DELETE",
        HostFeature::Volumes,
    ),
];

impl HostRoute {
    /// The route of a path without a query. `None` if there is none.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let given: Vec<&str> = path.strip_prefix("/1.0/")?.split('/').collect();
        ROUTES.iter().find_map(|&(pattern, allow, feature)| {
            let path = fill(pattern, &given)?;
            Some(Self {
                path,
                allow,
                feature,
            })
        })
    }

    /// Whether the route has this method.
    #[must_use]
    pub fn allows(&self, method: &str) -> bool {
        self.allow.split(", ").any(|allowed| allowed == method)
    }
}

/// The path that `pattern` is with the names of `given`, if they match.
fn fill(pattern: &str, given: &[&str]) -> Option<String> {
    if pattern.split('/').count() != given.len() {
        return None;
    }
    let parts = pattern.split('/').zip(given);
    parts
        .map(|(expected, given)| match expected {
            "*" => escaped(given),
            _ => (expected == *given).then(|| expected.to_owned()),
        })
        .try_fold("/1.0".to_owned(), |path, part| {
            Some(format!("{path}/{}", part?))
        })
}

/// The name in a path, escaped anew.
fn escaped(given: &str) -> Option<String> {
    let name = percent_decode_str(given).decode_utf8().ok()?;
    let is_name = !matches!(&*name, "" | "." | "..")
        && !name
            .contains(|character: char| matches!(character, '/' | '\\') || character.is_control());
    is_name.then(|| utf8_percent_encode(&name, RESERVED).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_its_names_escaped_anew() {
        for (path, expected) in [
            ("/1.0/ubuntu-pro", "/1.0/ubuntu-pro"),
            ("/1.0/images/ab12/export", "/1.0/images/ab12/export"),
            ("/1.0/instances/%63+1", "/1.0/instances/c%2B1"),
            (
                "/1.0/operations/a%252e%252e/wait",
                "/1.0/operations/a%252e%252e/wait",
            ),
            (
                "/1.0/storage-pools/p/volumes/custom/v/snapshots/s",
                "/1.0/storage-pools/p/volumes/custom/v/snapshots/s",
            ),
        ] {
            assert_eq!(HostRoute::of(path).unwrap().path, expected);
        }
    }

    #[test]
    fn nothing_else_is_a_route() {
        for path in [
            "/1.0/instances",
            "/1.0/instances/",
            "/1.0/instances/c1/exec",
            "/1.0/instances/..",
            "/1.0/instances/%2e%2e",
            "/1.0/instances/%2E.",
            "/1.0/instances/a%2f..%2f..%2fevents",
            "/1.0/instances/a%5cb",
            "/1.0/instances/a%00",
            "/1.0/instances/a%0d%0ab",
            "/1.0/instances/%ff",
            "/1.0/instances/c1/",
            "/1.0//instances/c1",
            "//1.0/instances/c1",
            "/1.0/storage-pools/../instances/c1",
            "/1.0/storage-pools/p/buckets",
            "/1.0/storage-pools/p/volumes/custom/v/snapshots/s/t",
            "/1.0/%69nstances/c1",
            "/1.0/ubuntu-pro/",
            "/1.0/operations",
            "/1.0/certificates",
            "/1.0/images/a",
            "/2.0/instances/c1",
            "/1.0",
            "/",
            "",
        ] {
            assert_eq!(HostRoute::of(path), None, "{path}");
        }
    }

    #[test]
    fn a_route_has_its_methods() {
        let volume = HostRoute::of("/1.0/storage-pools/p/volumes/custom/v").unwrap();
        for method in ["GET", "HEAD", "PATCH", "DELETE"] {
            assert!(volume.allows(method), "{method}");
        }
        for method in ["POST", "PUT", "get", "", "GET, HEAD"] {
            assert!(!volume.allows(method), "{method}");
        }
    }
}
