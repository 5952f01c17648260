//! Where our server may answer otherwise than OpenSSH's, and why. Nothing else may differ.

use crate::{
    op::{Argument, Attributes, Damage, Kind, Op},
    outcome::{Name, Outcome},
    wire::kind,
};

/// Whether a request and its two answers, OpenSSH's first, are some difference. Last comes what was
/// asked before.
pub(crate) type Matcher = fn(&Op, &Outcome, &Outcome, &[(usize, Op)]) -> bool;

/// One difference that is meant.
pub(crate) struct Allowed {
    /// What differs, for people.
    pub(crate) what: &'static str,
    /// Why ours does not do the same.
    pub(crate) why: &'static str,
    pub(crate) is: Matcher,
    /// What to make of the trees after it.
    pub(crate) after: After,
}

/// What holds of the two trees after a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// They are the same, and the sequence goes on.
    Same,
    /// They are the same but for times of access. The sequence ends.
    Over,
    /// They are the same but for setuid, setgid and sticky bits. The sequence ends.
    ButSpecialBits,
    /// One server did what the other refused. The sequence ends.
    Apart,
}

/// Status codes (draft-ietf-secsh-filexfer-02, section 7).
const OK: Outcome = Outcome::Status(0);
const EOF: Outcome = Outcome::Status(1);
const FAILURE: Outcome = Outcome::Status(4);
const BAD_MESSAGE: Outcome = Outcome::Status(5);
const OP_UNSUPPORTED: Outcome = Outcome::Status(8);

/// All of them.
pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        what: "MKDIR without attributes: OpenSSH exits, ours creates the directory",
        why: "some clients send none",
        is: |op, theirs, ours, _| {
            let mkdir = op.kind == Kind::Plain(kind::MKDIR) && matches!(op.damage, Damage::Cut(_));
            mkdir && *theirs == Outcome::End && *ours == OK
        },
        after: After::Apart,
    },
    Allowed {
        what: "a truncated request, or one with a NUL byte in a path or half an id: OpenSSH \
               exits, ours refuses the request",
        why: "other requests are not affected",
        is: |op, theirs, ours, _| {
            // What sets nothing looks for nothing.
            let nothing = op.attributes().is_some_and(Attributes::is_empty);
            may_end(op) && *theirs == Outcome::End && (failed(ours) || nothing && *ours == OK)
        },
        after: After::Same,
    },
    Allowed {
        what: "a NUL byte at the end of a path: OpenSSH ignores it, ours replies BAD_MESSAGE",
        why: "no file has this name",
        is: |op, theirs, ours, _| has_nul(op) && *theirs != Outcome::End && *ours == BAD_MESSAGE,
        after: After::Apart,
    },
    Allowed {
        what: "a request of an unknown type: OpenSSH does not reply, ours replies OP_UNSUPPORTED",
        why: "the client would wait for ever",
        is: |op, theirs, ours, _| {
            let strange = matches!(op.kind, Kind::Plain(kind) if !(kind::OPEN..=kind::SYMLINK).contains(&kind));
            strange && *theirs == Outcome::Silence && *ours == OP_UNSUPPORTED
        },
        after: After::Same,
    },
    Allowed {
        what: "SETSTAT, FSETSTAT and `lsetstat@openssh.com` of owner and special bits at once: OpenSSH \
               loses the bits, ours keeps them",
        why: "the kernel clears the bits when the owner changes",
        is: |op, theirs, ours, _| {
            let Some(attributes) = op.attributes() else {
                return false;
            };
            let special = attributes.mode.is_some_and(|mode| mode & 0o6000 != 0);
            let kinds = [
                Kind::Plain(kind::SETSTAT),
                Kind::Plain(kind::FSETSTAT),
                Kind::Extended("lsetstat@openssh.com"),
            ];
            kinds.contains(&op.kind) && special && attributes.owner.is_some() && theirs == ours
        },
        after: After::ButSpecialBits,
    },
    Allowed {
        what: "RENAME onto a dangling link: OpenSSH replaces the link, ours replies FAILURE",
        why: "RENAME never overwrites, by draft-02",
        is: |op, theirs, ours, _| {
            op.kind == Kind::Plain(kind::RENAME) && *theirs == OK && *ours == FAILURE
        },
        after: After::Apart,
    },
    Allowed {
        what: "RENAME that fails: another status",
        why: "ours is one system call, OpenSSH's are three, which detect errors in another order",
        is: |op, theirs, ours, _| {
            op.kind == Kind::Plain(kind::RENAME) && failed(theirs) && failed(ours) && theirs != ours
        },
        after: After::Same,
    },
    Allowed {
        what: "WRITE to a file opened to append, after a READ at the maximum offset: OpenSSH \
               replies BAD_MESSAGE, ours appends",
        why: "ours keeps no file position between requests",
        is: |op, theirs, ours, before| {
            let last = Argument::Long(i64::MAX.unsigned_abs());
            let read = before.iter().any(|(_, op)| op.arguments.contains(&last));
            op.kind == Kind::Plain(kind::WRITE) && read && *theirs == BAD_MESSAGE && *ours == OK
        },
        after: After::Apart,
    },
    Allowed {
        what: "`copy-data` from a directory, or between two handles of one file: OpenSSH compares \
               the names, and may copy for ever; ours compares the files, and replies FAILURE",
        why: "the written data would be read again until the disk is full",
        is: |op, theirs, ours, _| {
            let refused = *theirs == FAILURE || *ours == FAILURE;
            op.kind == COPY_DATA && refused && theirs != ours
        },
        after: After::Apart,
    },
    Allowed {
        what: "`copy-data` that cannot read or write: OpenSSH may reply OK, EOF or another error",
        why: "nothing was copied",
        is: |op, theirs, ours, _| {
            op.kind == COPY_DATA && status(theirs) && failed(ours) && theirs != ours
        },
        after: After::Over,
    },
    Allowed {
        what: "the long name in a listing: numbers in place of owner and group names, `?` for \
               control characters",
        why: "the agent uses no name service; a name must not control the terminal",
        is: |op, theirs, ours, _| {
            let listing = op.kind == Kind::Plain(kind::READDIR) && theirs != ours;
            let theirs = without_people(theirs, false);
            listing && theirs.is_some() && theirs == without_people(ours, true)
        },
        after: After::Same,
    },
    Allowed {
        what: "READDIR of a directory whose path was changed or became inaccessible: OpenSSH \
               lists only names in both directories, ours lists the open directory",
        why: "ours reads the attributes in the open directory, OpenSSH by its path",
        is: |op, theirs, ours, before| {
            let moves = [
                Kind::Plain(kind::RENAME),
                Kind::Plain(kind::REMOVE),
                Kind::Plain(kind::SETSTAT),
                Kind::Plain(kind::FSETSTAT),
                Kind::Extended("lsetstat@openssh.com"),
                Kind::Extended("posix-rename@openssh.com"),
            ];
            let moved = before.iter().any(|(_, op)| moves.contains(&op.kind));
            op.kind == Kind::Plain(kind::READDIR) && moved && is_part(theirs, ours)
        },
        after: After::Same,
    },
    Allowed {
        what: "`limits@openssh.com`: the number of handles",
        why: "OpenSSH replies with the limit of its process, ours with that of a session",
        is: |op, theirs, ours, _| {
            let Kind::Extended("limits@openssh.com") = op.kind else {
                return false;
            };
            // Three numbers before it.
            let same = |a: &[u8], b: &[u8]| a.len() == 32 && b.len() == 32 && a[..24] == b[..24];
            matches!((theirs, ours), (Outcome::Extended(a), Outcome::Extended(b)) if same(&a.0, &b.0))
        },
        after: After::Same,
    },
    Allowed {
        what: "`home-directory`: OpenSSH 9.2 replies with its own user's home for any user, and \
               FAILURE for the empty name; ours with the requested home, and its own user's",
        why: "a bug that is fixed in later versions; by the draft the empty name is the own user",
        is: |op, theirs, ours, _| {
            let home = op.kind == Kind::Extended("home-directory");
            let one =
                |outcome: &Outcome| matches!(outcome, Outcome::Names(names) if names.len() == 1);
            let empty = op.texts().all(<[u8]>::is_empty) && *theirs == FAILURE;
            home && one(ours) && theirs != ours && (one(theirs) || empty)
        },
        after: After::Same,
    },
];

/// Whether OpenSSH's answer is a listing, or its end, in which no name is that ours has not.
fn is_part(theirs: &Outcome, ours: &Outcome) -> bool {
    match (theirs, ours) {
        (Outcome::Status(_), Outcome::Names(_)) => *theirs == EOF,
        (Outcome::Names(theirs), Outcome::Names(ours)) => {
            let in_ours = |name: &Name| ours.iter().any(|other| other.name == name.name);
            theirs.iter().all(in_ours)
        }
        _ => false,
    }
}

fn status(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(_))
}

/// Whether it is a status other than OK and EOF.
fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(code) if *code > 1)
}

/// A listing as it is without names of owners and without control characters. `numbers`: there are
/// numbers, which must be those of the attributes.
fn without_people(outcome: &Outcome, numbers: bool) -> Option<Vec<Name>> {
    let Outcome::Names(names) = outcome else {
        return None;
    };
    let mut names = names.clone();
    for name in &mut names {
        let (words, shown) = &mut name.long;
        let (user, group) = name.attributes.owner?;
        let owners = words.get_mut(2..4)?;
        if numbers && *owners != [user.to_string(), group.to_string()] {
            return None;
        }
        owners.fill(String::new());
        for byte in &mut shown.0 {
            *byte = if byte.is_ascii_control() { b'?' } else { *byte };
        }
    }
    Some(names)
}

/// Whether OpenSSH's server may exit, so that what comes after it is not answered.
pub(crate) fn may_end(op: &Op) -> bool {
    op.damage != Damage::None || has_nul(op) || has_half_id(op)
}

fn has_nul(op: &Op) -> bool {
    let paths = op.texts().filter(|_| op.kind != IDS);
    op.kind != Kind::Plain(kind::WRITE) && { paths }.any(|text| text.contains(&0))
}

const COPY_DATA: Kind = Kind::Extended("copy-data");

const IDS: Kind = Kind::Extended("users-groups-by-id@openssh.com");

fn has_half_id(op: &Op) -> bool {
    op.kind == IDS && op.texts().any(|text| text.len() % 4 != 0)
}
