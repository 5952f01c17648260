"""Everything paramiko's SFTPClient can do, on the agent's socket, in an empty folder."""

import hashlib
import os
import select
import socket
import stat
import sys

import paramiko

agent, folder = sys.argv[1:]


class Stream(socket.socket):
    """What paramiko asks of its own channels beside what a socket has."""

    def get_name(self):
        return "agent"

    def recv_ready(self):
        return bool(select.select([self], [], [], 0)[0])


stream = Stream(socket.AF_UNIX)
stream.connect(agent)
stream.sendall(
    b"GET /1.0/sftp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n"
)
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += stream.recv(1)
assert head.startswith(b"HTTP/1.1 101 "), head
sftp = paramiko.SFTPClient(stream)

sftp.chdir(folder)
assert sftp.getcwd() == folder
assert sftp.listdir() == []

data = os.urandom(2_000_000)
with sftp.open("file", "wb") as file:
    file.set_pipelined(True)
    file.write(data)
with sftp.open("file", "rb") as file:
    file.prefetch()
    assert file.read() == data
with sftp.open("file", "rb") as file:
    pieces = [(7, 13), (1_000_000, 100_000), (1_999_990, 10)]
    for (at, length), piece in zip(pieces, file.readv(pieces)):
        assert piece == data[at : at + length]
with sftp.open("file", "ab") as file:
    file.write(b"appended")
with sftp.open("file", "r+b") as file:
    file.seek(5)
    file.write(b"inside")
    assert file.stat().st_size == len(data) + 8
    file.truncate(20)
assert open(os.path.join(folder, "file"), "rb").read() == data[:5] + b"inside" + data[11:20]
try:
    sftp.open("file", "x")
    raise SystemExit("created what is there")
except OSError:
    pass

sftp.mkdir("folder", 0o750)
sftp.posix_rename("file", "folder/moved")
sftp.symlink("folder/moved", "link")
assert sftp.readlink("link") == "folder/moved"
assert stat.S_ISLNK(sftp.lstat("link").st_mode)
assert sftp.stat("link").st_size == 20
assert sftp.normalize("folder/../link") == os.path.join(folder, "folder/moved")
sftp.chmod("link", 0o4711)
sftp.utime("link", (11, 22))
sftp.truncate("link", 10)
found = sftp.stat("folder/moved")
assert (found.st_mode, found.st_size, found.st_mtime) == (0o104711, 10, found.st_mtime)
sftp.utime("link", (11, 22))
assert sftp.stat("link").st_mtime == 22
for number in range(250):
    sftp.open(f"folder/{number}", "w").close()
assert len(sftp.listdir("folder")) == 251
assert sorted(entry.filename for entry in sftp.listdir_iter("folder")) == sorted(
    sftp.listdir("folder")
)
sftp.putfo(open("/proc/self/exe", "rb"), "program")
local = os.path.join(folder, "local")
sftp.get("program", local)
digest = lambda path: hashlib.sha256(open(path, "rb").read()).digest()
assert digest(local) == digest("/proc/self/exe")
for missing in (sftp.stat, sftp.remove, sftp.rmdir, sftp.listdir, sftp.readlink):
    try:
        missing("no-such")
        raise SystemExit(f"{missing} of nothing")
    except FileNotFoundError:
        pass
for number in range(250):
    sftp.remove(f"folder/{number}")
sftp.remove("folder/moved")
sftp.rmdir("folder")
assert sorted(sftp.listdir()) == ["link", "local", "program"]
sftp.close()
print("done")
