//! Redirects connections to an address and port before the kernel looks up the listening socket: a BPF
//! program of type `sk_lookup` (`Documentation/bpf/prog_sk_lookup.rst`, Linux 5.9) assigns them to a
//! socket that listens elsewhere. So the port itself stays free for programs of the guest, those that
//! listen on all addresses included.
//!
//! An accepted connection has the address and port that its client connected to. So a server that binds
//! to the port without `SO_REUSEADDR`, which is rare, gets `EADDRINUSE` while such a connection is open,
//! and for the minute of its `TIME_WAIT`.

#![allow(unsafe_code, reason = "bpf(2) takes addresses")]

use std::{
    ffi::c_long,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// The program's context (`struct bpf_sk_lookup` in `linux/bpf.h`): offsets in bytes. All fields are
/// words, the addresses in network order.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;
const INGRESS_INDEX: i16 = 64;

/// The loopback's index, the same in every network namespace.
const LOOPBACK_INDEX: i32 = 1;

/// Commands of `bpf(2)`, and kinds of maps, programs and attachments (`linux/bpf.h`).
const MAP_CREATE: c_long = 0;
const MAP_UPDATE_ELEM: c_long = 2;
const PROG_LOAD: c_long = 5;
const LINK_CREATE: c_long = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// Functions of the kernel's that a program may call (`linux/bpf.h`).
const CALL_MAP_LOOKUP_ELEM: i32 = 1;
const CALL_SK_RELEASE: i32 = 86;
const CALL_SK_ASSIGN: i32 = 124;

/// What the program returns: let the connection in, to the socket that was assigned if one was.
const SK_PASS: i32 = 1;

/// The license of the program: no helper that it calls requires the GPL.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// The network namespace that a program is attached to.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// An attached program. `Drop` detaches it.
#[derive(Debug)]
pub(crate) struct SkLookup(#[expect(dead_code, reason = "held for its `Drop`")] OwnedFd);

impl SkLookup {
    /// Hands TCP connections that come by the loopback to `address` over to `listener`, a listening
    /// socket of the same family, in the network namespace of this thread. The socket itself must be
    /// bound to the loopback: up to Linux 5.16 a program does not see the device.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`: `ENOSYS` or `EINVAL` if the kernel does not support it, `EPERM` without the
    /// capability or if the kernel is locked down.
    pub(crate) fn attach(address: SocketAddr, listener: &impl AsFd) -> io::Result<Self> {
        let listener = listener.as_fd().as_raw_fd();
        let map = create_map()?;
        let (key, value) = (0_u32, u64::try_from(listener).unwrap_or_default());
        update_map(&map, &key, &value)?;
        let map = map.as_raw_fd();
        let by_loopback = [matches(address), vec![(INGRESS_INDEX, LOOPBACK_INDEX)]].concat();
        let program = match load(&program(&by_loopback, map)) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                load(&program(&matches(address), map))
            }
            loaded => loaded,
        }?;
        let namespace = File::open(NAMESPACE)?;
        let link = Attributes::default()
            .fd(&program)
            .fd(&namespace)
            .word(ATTACH_SK_LOOKUP)
            .word(0);
        link.descriptor(LINK_CREATE).map(Self)
    }
}

/// A map of one socket.
fn create_map() -> io::Result<OwnedFd> {
    let (key_bytes, value_bytes, entries) = (4, 8, 1);
    let attributes = Attributes::default()
        .word(MAP_TYPE_SOCKMAP)
        .word(key_bytes)
        .word(value_bytes)
        .word(entries);
    attributes.descriptor(MAP_CREATE)
}

fn update_map(map: &OwnedFd, key: &u32, value: &u64) -> io::Result<()> {
    let attributes = Attributes::default()
        .fd(map)
        .word(0)
        .address(key)
        .address(value)
        .long(0);
    attributes.call(MAP_UPDATE_ELEM).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).unwrap_or_default();
    let attributes = Attributes::default()
        .word(PROG_TYPE_SK_LOOKUP)
        .word(count)
        .address(program)
        .address(LICENSE.to_bytes_with_nul())
        // No log, no version, no flags, no name, no device.
        .words(&[0; 11])
        .word(ATTACH_SK_LOOKUP);
    attributes.descriptor(PROG_LOAD)
}

/// The attributes of a command of `bpf(2)` (`union bpf_attr` in `linux/bpf.h`). Missing ones are zero.
#[derive(Debug, Default)]
struct Attributes(Vec<u32>);

impl Attributes {
    fn word(self, word: u32) -> Self {
        self.words(&[word])
    }

    fn words(mut self, words: &[u32]) -> Self {
        self.0.extend(words);
        self
    }

    fn long(mut self, long: u64) -> Self {
        let bytes = long.to_ne_bytes();
        let (words, _) = bytes.as_chunks();
        self.0
            .extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
        self
    }

    fn fd(self, fd: &impl AsRawFd) -> Self {
        self.word(fd.as_raw_fd().cast_unsigned())
    }

    /// A pointer to `target`, which must live until the call returns.
    fn address<T: ?Sized>(self, target: &T) -> Self {
        let address = std::ptr::from_ref(target).addr();
        self.long(u64::try_from(address).unwrap_or_default())
    }

    fn call(&self, command: c_long) -> io::Result<c_long> {
        let (start, bytes) = (self.0.as_ptr(), size_of_val(self.0.as_slice()));
        // SAFETY: the kernel reads `bytes` bytes, and what the pointers in them lead to: a key and a
        // value of the sizes that their map has, or a program and a license of the lengths that are
        // passed with them, all borrowed by the callers until this returns.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, start, bytes) };
        match result {
            0.. => Ok(result),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn descriptor(&self, command: c_long) -> io::Result<OwnedFd> {
        let fd = RawFd::try_from(self.call(command)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just created this descriptor, close-on-exec, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// An instruction (`struct bpf_insn` in `linux/bpf.h`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Codes of instructions (`linux/bpf.h` and `linux/bpf_common.h`).
mod code {
    pub(crate) const MOVE: u8 = 0xbf;
    pub(crate) const MOVE_IMMEDIATE: u8 = 0xb7;
    pub(crate) const ADD_IMMEDIATE: u8 = 0x07;
    pub(crate) const LOAD_WORD: u8 = 0x61;
    pub(crate) const STORE_WORD_IMMEDIATE: u8 = 0x62;
    pub(crate) const LOAD_MAP: u8 = 0x18;
    pub(crate) const JUMP_IF_WORD_NOT: u8 = 0x56;
    pub(crate) const JUMP_IF: u8 = 0x15;
    pub(crate) const CALL: u8 = 0x85;
    pub(crate) const EXIT: u8 = 0x95;
    /// The source register of [`LOAD_MAP`]: the immediate is a descriptor.
    pub(crate) const BY_DESCRIPTOR: u8 = 1;
}

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") {
        source << 4 | target
    } else {
        target << 4 | source
    };
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

/// The program: a connection whose fields have these values goes to the socket in the map, all
/// others their own way.
fn program(matches: &[(i16, i32)], map: RawFd) -> Vec<Instruction> {
    let end = [
        instruction(code::MOVE_IMMEDIATE, 0, 0, 0, SK_PASS),
        instruction(code::EXIT, 0, 0, 0, 0),
    ];
    let mut program = vec![instruction(code::MOVE, 6, 1, 0, 0)];
    let assign = assign(map);
    for (at, (field, value)) in matches.iter().enumerate() {
        program.push(instruction(code::LOAD_WORD, 2, 6, *field, 0));
        // Behind the other comparisons, of two instructions each, and what is done if all hold.
        let distance = 2 * (matches.len() - at - 1) + assign.len();
        let distance = i16::try_from(distance).unwrap_or_default();
        program.push(instruction(code::JUMP_IF_WORD_NOT, 2, 0, distance, *value));
    }
    program.extend(assign);
    program.extend(end);
    program
}

/// The fields that a connection to the address has, and their values.
fn matches(address: SocketAddr) -> Vec<(i16, i32)> {
    let port = i32::from(address.port());
    let mut matches = vec![(PROTOCOL, libc::IPPROTO_TCP), (LOCAL_PORT, port)];
    match address.ip() {
        IpAddr::V4(ip) => {
            matches.push((FAMILY, libc::AF_INET));
            matches.push((LOCAL_IP4, i32::from_ne_bytes(ip.octets())));
        }
        IpAddr::V6(ip) => {
            matches.push((FAMILY, libc::AF_INET6));
            let octets = ip.octets();
            let (words, _) = octets.as_chunks();
            let fields = (LOCAL_IP6..).step_by(4);
            matches.extend(fields.zip(words.iter().map(|word| i32::from_ne_bytes(*word))));
        }
    }
    matches
}

/// Looks up the socket in the map, hands the connection to it and lets go of it. Register 6 has the
/// connection.
fn assign(map: RawFd) -> [Instruction; 14] {
    [
        // The key, 0, on the stack.
        instruction(code::STORE_WORD_IMMEDIATE, 10, 0, -4, 0),
        instruction(code::MOVE, 2, 10, 0, 0),
        instruction(code::ADD_IMMEDIATE, 2, 0, 0, -4),
        // An instruction of twice the size.
        instruction(code::LOAD_MAP, 1, code::BY_DESCRIPTOR, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(code::CALL, 0, 0, 0, CALL_MAP_LOOKUP_ELEM),
        // None: to the end.
        instruction(code::JUMP_IF, 0, 0, 7, 0),
        instruction(code::MOVE, 7, 0, 0, 0),
        instruction(code::MOVE, 1, 6, 0, 0),
        instruction(code::MOVE, 2, 7, 0, 0),
        instruction(code::MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(code::CALL, 0, 0, 0, CALL_SK_ASSIGN),
        instruction(code::MOVE, 1, 7, 0, 0),
        instruction(code::CALL, 0, 0, 0, CALL_SK_RELEASE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_of_a_program_leads_to_its_end() {
        for address in ["169.254.169.254:80", "[fd00:ec2::254]:80"] {
            let program = program(&matches(address.parse().unwrap()), 3);
            let end = program.len() - 2;
            let jumps = program.iter().enumerate().filter(|(_, instruction)| {
                [code::JUMP_IF, code::JUMP_IF_WORD_NOT].contains(&instruction.code)
            });
            for (at, jump) in jumps {
                let target = at + 1 + usize::try_from(jump.offset).unwrap();
                assert_eq!(target, end, "{address}: the jump at {at}");
            }
        }
    }

    #[test]
    fn an_address_is_compared_as_the_network_has_it() {
        let address: SocketAddr = "169.254.169.254:80".parse().unwrap();
        let word = i32::from_ne_bytes([169, 254, 169, 254]);
        let expected = [(LOCAL_IP4, word), (LOCAL_PORT, 80)];
        for field in expected {
            assert!(matches(address).contains(&field), "{field:?}");
        }
        let address: SocketAddr = "[fd00:ec2::254]:80".parse().unwrap();
        let word = i32::from_ne_bytes([0, 0, 2, 0x54]);
        assert_eq!(matches(address).last(), Some(&(LOCAL_IP6 + 12, word)));
    }
}
