"""What is mounted where: decisions one by one, then properties of every plan."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper_core.errors import (
    AmbiguousRoot,
    BadFstab,
    MapperError,
    NoRootFound,
    UnknownFilesystem,
    UnsafePath,
)
from mapper_core.model import Access, Filesystem, Mount, MountPlan, Partition, Volume
from mapper_core.tree import dps, fstab
from mapper_core.tree.options import ALLOWED_FILESYSTEMS
from mapper_core.tree.plan import PlanPolicy, data_disk, plan
from mapper_core.tree.targets import depth

pytestmark = pytest.mark.unit

ALL = PlanPolicy(ALLOWED_FILESYSTEMS)
#: A kernel with the usual server filesystems and no vfat, as in many minimal hosts.
SMALL = PlanPolicy(frozenset({"ext4", "xfs", "btrfs", "squashfs"}))
READ_ONLY = PlanPolicy(ALLOWED_FILESYSTEMS, Access.READ_ONLY)


def volume(number: int, fs: str, label: str = "", kind: str = "") -> Volume:
    partition = Partition(
        number, number << 20, 1 << 20, type=kind, uuid=f"partuuid-{number}", device=f"/dev/loop0p{number}"
    )
    return Volume(partition, Filesystem(fs, f"uuid-{number}", label))


ROOT = volume(1, "ext4", "root")
BOOT = volume(2, "ext4", "boot")
ESP = volume(3, "vfat", "EFI", dps.ESP)
HOME = volume(4, "xfs", "home")
SWAP = volume(5, "swap", "swap")
VAR = volume(6, "ext4", "var")
LOG = volume(7, "ext3", "log")
POOL = volume(8, "btrfs", "pool")
LVM = volume(9, "LVM2_member")
BLANK = volume(10, "")
NTFS = volume(11, "ntfs", "windows")
DISK = (ROOT, BOOT, ESP, HOME, SWAP, VAR, LOG, POOL, LVM, BLANK, NTFS)


def make(text: str, policy: PlanPolicy = ALL, root: Volume = ROOT, subvolume: str = "") -> MountPlan:
    return plan(DISK, fstab.parse(text.encode()), policy, root, subvolume=subvolume)


def placed(made: MountPlan) -> list[tuple[str, int]]:
    return [(mount.target, mount.volume.partition.number) for mount in made.mounts]


def only(text: str, policy: PlanPolicy = ALL) -> Mount:
    """The one mount besides the root."""
    made = make(text, policy)
    assert len(made.mounts) == 2, made
    return made.mounts[1]


# --- whole tables ---------------------------------------------------------------------------------------------


def test_a_debian_system() -> None:
    made = make(
        """\
# /etc/fstab: static file system information.
UUID=uuid-1 /               ext4    errors=remount-ro 0       1
UUID=uuid-2 /boot           ext4    defaults        0       2
UUID=UUID-3 /boot/efi       vfat    umask=0077      0       1
LABEL=home  /home           xfs     defaults,nodev  0       2
PARTUUID=partuuid-5 none    swap    sw              0       0
/dev/sr0    /media/cdrom0   udf,iso9660 user,noauto 0       0
tmpfs       /tmp            tmpfs   nosuid,nodev    0       0
"""
    )
    assert made.mounts == (
        Mount(ROOT, "/", "ext4", ("errors=remount-ro",)),
        Mount(BOOT, "/boot", "ext4"),
        Mount(HOME, "/home", "xfs", ("nodev", "nouuid")),
        Mount(ESP, "/boot/efi", "vfat", ("umask=0077",)),
    )
    assert [item.reason for item in made.skipped] == ["swap", "noauto", "tmpfs is mounted by the guest itself"]
    assert made.skipped[0].line == "PARTUUID=partuuid-5 none    swap    sw              0       0"
    assert made.warnings == ()


def test_a_btrfs_system() -> None:
    """P-08: one filesystem, several places, by LABEL and UUID, with and without slash."""
    made = make(
        """\
UUID=uuid-8 /          btrfs subvol=/@,compress=zstd:1,x-systemd.device-timeout=0 0 0
LABEL=pool  /home      btrfs subvol=@home 0 0
UUID=uuid-8 /var/log   btrfs subvolid=258 0 0
UUID=uuid-8 /.top      btrfs subvolid=5 0 0
LABEL=pool  /snapshots btrfs defaults 0 0
""",
        root=POOL,
    )
    assert [(mount.target, mount.subvolume, mount.options) for mount in made.mounts] == [
        ("/", "@", ("compress=zstd:1",)),
        ("/.top", "/", ()),
        ("/home", "@home", ()),
        ("/snapshots", "", ()),
        ("/var/log", "", ("subvolid=258",)),
    ]


def test_no_fstab() -> None:
    """P-04."""
    assert plan(DISK, None, ALL, ROOT).mounts == make("").mounts == (Mount(ROOT, "/", "ext4"),)


def test_parents_first() -> None:
    """P-06."""
    made = make(
        "LABEL=log /var/log ext3\nLABEL=home /var/log/a/b xfs\nLABEL=var /var ext4\nLABEL=root / ext4\nLABEL=boot /a ext4"
    )
    assert [mount.target for mount in made.mounts] == ["/", "/a", "/var", "/var/log", "/var/log/a/b"]


def test_the_same_input_gives_the_same_plan() -> None:
    text = "LABEL=var /var ext4 user,noatime\nLABEL=home /home xfs\nLABEL=nope /x ext4 nofail"
    assert make(text) == make(text)
    assert repr(make(text)) == repr(make(text))


# --- the root -------------------------------------------------------------------------------------------------


def test_the_line_for_the_root_gives_its_options() -> None:
    assert make("UUID=uuid-1 // ext4 noatime,commit=30").mounts == (Mount(ROOT, "/", "ext4", ("noatime", "commit=30")),)
    assert make("/dev/root / auto ro").mounts == (Mount(ROOT, "/", "ext4", access=Access.READ_ONLY),)


def test_the_root_is_mounted_even_with_noauto_and_a_wrong_type() -> None:
    assert placed(make("UUID=uuid-1 / xfs noauto")) == [("/", 1)]


@pytest.mark.parametrize("spec", ["UUID=other", "/dev/sdb99", "/dev/mapper/vg-root", "/dev/disk/by-dname/root"])
def test_the_line_for_the_root_names_nothing_here(spec: str) -> None:
    """Images are cloned and repartitioned; the root has been chosen, so that this is no more than a warning."""
    made = make(f"{spec} / ext4 noatime")
    assert made.mounts == (Mount(ROOT, "/", "ext4", ("noatime",)),)
    assert len(made.warnings) == 1
    assert "fstab line 1 for /" in made.warnings[0]


def test_the_line_for_the_root_names_another_partition() -> None:
    made = make("LABEL=var / ext4 noatime")
    assert made.mounts == (Mount(ROOT, "/", "ext4"),)
    assert made.warnings == (
        "fstab line 1 says that / is partition 6: ext4 labelled 'var', but the root chosen is partition 1: ext4 labelled 'root'",
    )


def test_two_lines_for_the_root() -> None:
    with pytest.raises(BadFstab, match="/ is mounted by an earlier line"):
        make("LABEL=root / ext4\nLABEL=root /. ext4")


def test_an_overlay_for_the_root_is_none() -> None:
    made = make("overlay / overlay lowerdir=/a,upperdir=/b 0 0\nLABEL=root / ext4 noatime")
    assert made.mounts == (Mount(ROOT, "/", "ext4", ("noatime",)),)


@pytest.mark.parametrize("target", ["/..", "/../", "/./.."])
def test_upwards_is_not_the_root(target: str) -> None:
    """S-09."""
    with pytest.raises(UnsafePath):
        make(f"LABEL=root {target} ext4")


@pytest.mark.parametrize("root", [SWAP, LVM, BLANK, NTFS])
def test_a_root_that_cannot_be_mounted(root: Volume) -> None:
    with pytest.raises(UnknownFilesystem):
        make("", root=root)


def test_a_root_that_this_kernel_cannot_mount() -> None:
    with pytest.raises(UnknownFilesystem, match="which this kernel cannot mount") as caught:
        make("", SMALL, root=ESP)
    assert "load the kernel module for vfat" in caught.value.hint


def test_subvolume_of_the_root() -> None:
    """P-08: the line for / counts more than where the root was seen."""
    assert make("", root=POOL, subvolume="@").mounts[0].subvolume == "@"
    assert make("LABEL=pool / btrfs noatime", root=POOL, subvolume="@").mounts[0].subvolume == "@"
    assert make("LABEL=pool / btrfs subvolid=300", root=POOL, subvolume="@").mounts[0].subvolume == ""
    same = make("LABEL=pool / btrfs subvol=/@", root=POOL, subvolume="@")
    assert (same.mounts[0].subvolume, same.warnings) == ("@", ())
    other = make("LABEL=pool / btrfs subvol=@", root=POOL, subvolume="@backup")
    assert (other.mounts[0].subvolume, len(other.warnings)) == ("@", 1)
    assert "@backup" in other.warnings[0]
    assert make("", subvolume="@").mounts[0].subvolume == ""  # not btrfs


# --- lines that are skipped -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("LABEL=swap none swap sw 0 0", "swap"),
        ("LABEL=swap swap swap defaults", "swap"),
        ("/swapfile none swap sw", "swap"),
        ("/dev/mapper/vg-swap swap swap defaults", "swap"),
        ("LABEL=home none xfs defaults", "no mount point"),
        ("tmpfs /run/user tmpfs size=1g", "guest itself"),
        ("tmpfs /dev/shm tmpfs defaults", "guest itself"),
        ("proc /proc proc defaults", "guest itself"),
        ("sysfs /sys sysfs defaults", "guest itself"),
        ("devpts /dev/pts devpts gid=5", "guest itself"),
        ("none /mnt none defaults", "guest itself"),
        ("overlay /merged overlay lowerdir=/a", "guest itself"),
        ("sshfs#a@b:/ /mnt fuse.sshfs defaults", "network"),
        ("encfs /mnt fuse.encfs defaults", "guest itself"),
        ("/srv/a /srv/b none bind 0 0", "bind"),
        ("/srv/a /srv/b auto defaults,rbind 0 0", "bind"),
        ("server:/export /mnt nfs defaults", "network"),
        ("[fe80::1]:/export /mnt nfs4 defaults", "network"),
        ("//server/share /mnt cifs guest", "network"),
        ("//server/share /mnt auto guest", "network"),
        ("10.0.0.1:6789:/ /mnt ceph name=admin", "network"),
        ("server:/export /mnt auto defaults", "network"),
        ("LABEL=home /home xfs noauto", "noauto"),
        ("LABEL=home ../home xfs noauto", "noauto"),
        ("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto", "noauto"),
    ],
)
def test_skipped(line: str, reason: str) -> None:
    """P-01, P-02: skipped lines are listed, with the reason."""
    made = make(f"LABEL=root / ext4\n{line}\n")
    assert placed(made) == [("/", 1)]
    assert [(item.line, reason in item.reason) for item in made.skipped] == [(line, True)]
    assert made.warnings == ()


# --- lines that cannot be resolved ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "UUID=other",
        "LABEL=Home",
        "PARTUUID=partuuid-99",
        "/dev/sdb4",
        "/dev/vda99",
        "/dev/mapper/vg-home",
        "/dev/md0",
        "/dev/vg/home",
        "/dev/disk/by-dname/home",
        "/dev/loop0p4",
        "/images/home.img",
        "nonsense",
    ],
)
def test_what_is_not_on_this_disk(spec: str) -> None:
    """P-02, P-18: a missing /home must not go unnoticed, and is never looked for on the host."""
    with pytest.raises(BadFstab) as caught:
        make(f"LABEL=root / ext4\n{spec} /home xfs defaults 0 2")
    assert caught.value.subject == "/etc/fstab line 2"
    assert "nofail" in caught.value.hint
    made = make(f"LABEL=root / ext4\n{spec} /home xfs defaults,nofail 0 2")
    assert placed(made) == [("/", 1)]
    assert made.skipped[0].reason.endswith("(nofail)")


def test_first_disk_and_other_disks() -> None:
    """P-02: /dev/vdb4 is not partition 4 of this disk; after a root on /dev/sdb1, /dev/sdb4 is."""
    assert placed(make("LABEL=root / ext4\n/dev/vda4 /home xfs")) == [("/", 1), ("/home", 4)]
    assert placed(make("/dev/sdb1 / ext4\n/dev/sdb4 /home xfs")) == [("/", 1), ("/home", 4)]
    for text in ("LABEL=root / ext4\n/dev/vdb4 /home xfs", "/dev/sdb1 / ext4\n/dev/sda4 /home xfs"):
        with pytest.raises(BadFstab, match="another disk"):
            make(text)


def test_two_names_for_the_first_disk() -> None:
    with pytest.raises(BadFstab, match="not known on which"):
        make("LABEL=root / ext4\n/dev/sda6 /var ext4\n/dev/vda4 /home xfs")


def test_a_data_volume_of_another_disk_by_its_path() -> None:
    """The first partition of some volume must not become a second mount of the root."""
    with pytest.raises(BadFstab, match="is the root already"):
        make("UUID=uuid-1 / ext4\n/dev/disk/by-id/scsi-0Volume_data-part1 /data ext4")


def test_ambiguous_label() -> None:
    twins = (ROOT, volume(20, "ext4", "twin"), volume(21, "ext4", "twin"))
    with pytest.raises(BadFstab, match="matches partitions 20, 21"):
        plan(twins, fstab.parse(b"LABEL=twin /data ext4"), ALL, ROOT)


# --- contradictions -------------------------------------------------------------------------------------------


def test_two_lines_for_one_target() -> None:
    for second in ("/var", "/var/", "//var/."):
        with pytest.raises(BadFstab, match="/var is mounted by an earlier line"):
            make(f"LABEL=var /var ext4\nLABEL=log {second} ext3")


def test_one_partition_at_two_places() -> None:
    with pytest.raises(BadFstab, match="is mounted at /var already"):
        make("LABEL=var /var ext4\nUUID=uuid-6 /srv ext4")
    assert placed(make("LABEL=var /var ext4\nUUID=uuid-6 /srv ext4 nofail")) == [("/", 1), ("/var", 6)]


@pytest.mark.parametrize("written", ["ext4", "auto", "ext3", "ext2", "xfs,ext4"])
def test_types_that_agree(written: str) -> None:
    assert only(f"LABEL=log /log {written}").fstype == "ext3"


@pytest.mark.parametrize(
    ("label", "written"), [("var", "xfs"), ("home", "ext4"), ("pool", "ext4"), ("EFI", "ext4"), ("var", "udf,iso9660")]
)
def test_types_that_disagree(label: str, written: str) -> None:
    """S-16: the superblock decides, the line must agree."""
    with pytest.raises(BadFstab, match=f"the line says {written}, but partition"):
        make(f"LABEL={label} /x {written}")
    assert len(make(f"LABEL={label} /x {written} nofail").skipped) == 1


@pytest.mark.parametrize("written", ["vfat", "msdos", "auto"])
def test_names_of_fat(written: str) -> None:
    assert only(f"LABEL=EFI /mnt {written}").fstype == "vfat"


# --- filesystems ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "what"), [("UUID=uuid-11", "ntfs"), ("UUID=uuid-9", "LVM2"), ("UUID=uuid-10", "nothing")]
)
def test_types_that_are_never_mounted(spec: str, what: str) -> None:
    """S-16, P-05."""
    with pytest.raises(UnknownFilesystem, match=what):
        make(f"{spec} /data auto")
    assert placed(make(f"{spec} /data auto nofail")) == [("/", 1)]


@pytest.mark.parametrize("target", ["/boot", "/boot/efi", "/efi", "/boot/efi/"])
def test_boot_partition_that_this_kernel_cannot_mount(target: str) -> None:
    """P-05: a container starts without it."""
    made = make(f"LABEL=EFI {target} vfat umask=0077", SMALL)
    assert placed(made) == [("/", 1)]
    assert "cannot mount" in made.skipped[0].reason
    assert made.warnings == (
        f"{target} is not mounted: partition 3: vfat labelled 'EFI', which this kernel cannot mount",
    )


def test_vfat_elsewhere_is_an_error() -> None:
    with pytest.raises(UnknownFilesystem):
        make("LABEL=EFI /data vfat", SMALL)


def test_ext_by_the_driver_of_ext4() -> None:
    """Kernels without a driver for ext3 use the one of ext4."""
    assert only("LABEL=log /log ext3", SMALL).fstype == "ext4"


def test_clones_of_xfs() -> None:
    """P-09."""
    assert only("LABEL=home /home xfs defaults").options == ("nouuid",)


def test_read_only_policy() -> None:
    """Nothing is written: not by a mount, and not by replaying a journal."""
    made = make("LABEL=root / ext4\nLABEL=home /home xfs rw\nLABEL=pool /pool btrfs\nLABEL=EFI /efi vfat", READ_ONLY)
    assert {mount.access for mount in made.mounts} == {Access.READ_ONLY}
    options = {mount.target: mount.options for mount in made.mounts}
    assert options == {
        "/": ("noload",), "/home": ("nouuid", "norecovery"), "/pool": ("rescue=nologreplay",), "/efi": (),
    }  # fmt: skip


def test_options_that_are_dropped_are_named() -> None:
    made = make("LABEL=root / ext4 errors=panic,noatime\nLABEL=var /var ext4 dev,suid,usrquota")
    assert made.warnings == (
        "/: options of the image that are not used: errors=panic",
        "/var: options of the image that are not used: dev, suid, usrquota",
    )
    assert [mount.options for mount in made.mounts] == [("noatime",), ()]


def test_hibernated_system() -> None:
    disk = (ROOT, volume(5, "swsuspend"))
    assert "hibernated" in plan(disk, None, ALL, ROOT).warnings[0]


def test_nofail_makes_a_mount_optional() -> None:
    assert only("LABEL=var /var ext4 nofail").optional
    assert not only("LABEL=var /var ext4").optional


# --- hostile targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["defaults", "nofail"])
@pytest.mark.parametrize(
    "target",
    [
        "/../../../../etc",
        "home",
        "/home/../../etc",
        "/proc",
        "/sys/kernel",
        "/dev",
        "/run/lock",
        "//dev/",
        "/" + "a" * 5000,
    ],
)
def test_unsafe_targets(target: str, options: str) -> None:
    """S-09: refused whatever else the line says."""
    with pytest.raises(UnsafePath):
        make(f"LABEL=var {target} ext4 {options}")


@pytest.mark.parametrize("name", [";touch${IFS}/canary", "$(id)", "`id`", "-rf", "%s", "a\\012b", "*", "{a,b}"])
def test_names_are_data(name: str) -> None:
    """S-12."""
    mount = only(f"LABEL=var /{name} ext4")
    assert mount.target == "/" + name.replace("\\012", "\n")


def test_messages_can_be_printed() -> None:
    """S-12: an image cannot steer the terminal of the one who reads the plan."""
    for line in ("LABEL=\x1b[2J /a\x1b[2J ext4", "LABEL=var /\x1b[2J/../x ext4", "LABEL=var /a xfs\x1b[2J"):
        with pytest.raises(MapperError) as caught:
            make(line)
        assert "\x1b" not in f"{caught.value}{caught.value.hint}{caught.value.subject}"
    made = make("LABEL=var /a\x1b[2J ext4 x\x1b[2J\nLABEL=x\x1b /b\x1b ext4 nofail")
    assert "\x1b" not in repr((made.skipped, made.warnings))


# --- data disks -----------------------------------------------------------------------------------------------


def test_data_disk() -> None:
    bare = volume(0, "xfs")
    assert data_disk((bare,), ALL).mounts == (Mount(bare, "/", "xfs", ("nouuid",)),)
    assert data_disk((ESP, SWAP, HOME, BLANK, LVM), READ_ONLY).mounts == (
        Mount(HOME, "/", "xfs", ("nouuid", "norecovery"), Access.READ_ONLY),
    )
    assert data_disk((volume(0, "iso9660"),), ALL).mounts[0].access is Access.READ_ONLY
    assert data_disk((ESP,), ALL).mounts[0].volume == ESP


def test_data_disk_with_several_filesystems() -> None:
    with pytest.raises(AmbiguousRoot, match="partition 4: xfs labelled 'home'; partition 6: ext4") as caught:
        data_disk((HOME, VAR), ALL)
    assert "name the partition" in caught.value.hint
    with pytest.raises(AmbiguousRoot):
        data_disk((ESP, volume(12, "vfat", kind=dps.ESP)), ALL)
    assert data_disk((HOME, VAR), ALL, "6").mounts[0].volume == VAR
    assert data_disk((HOME, VAR), ALL, "LABEL=home").mounts[0].volume == HOME


@pytest.mark.parametrize("volumes", [(), (BLANK,), (SWAP, LVM), (NTFS,)])
def test_data_disk_without_a_filesystem(volumes: tuple[Volume, ...]) -> None:
    with pytest.raises(NoRootFound, match="no filesystem that can be mounted"):
        data_disk(volumes, ALL)


def test_data_disk_that_this_kernel_cannot_mount() -> None:
    with pytest.raises(UnknownFilesystem, match="this kernel cannot mount"):
        data_disk((volume(0, "iso9660"),), SMALL)
    with pytest.raises(UnknownFilesystem, match="never mounted"):
        data_disk((HOME, NTFS), ALL, "11")
    with pytest.raises(NoRootFound, match="not on this disk"):
        data_disk((HOME,), ALL, "7")


# --- properties -----------------------------------------------------------------------------------------------

SPECS = st.sampled_from(
    [
        f"{tag}={name}"
        for tag in ("UUID", "LABEL", "PARTUUID")
        for name in ("uuid-4", "var", "log", "partuuid-8", "root", "pool")
    ]
    + [
        "/dev/sda1",
        "/dev/sda4",
        "/dev/vdb4",
        "/dev/root",
        "tmpfs",
        "server:/x",
        "/dev/mapper/x",
        "/dev/disk/by-id/x-part6",
    ]
)
NAMES = st.sampled_from(["a", "b", "var", "..", ".", "", "proc", "dev", "home", "\x1b", "ä", "\udcff", "a" * 300])
TARGETS = st.lists(NAMES, max_size=5).map(lambda names: "/" + "/".join(names)) | st.text(max_size=10) | st.just("/")
TYPES = st.sampled_from(["ext4", "xfs", "btrfs", "vfat", "auto", "swap", "tmpfs", "ext3,ext4", "fuse.x", "ntfs"])
OPTIONS = st.sampled_from(
    [
        "defaults",
        "ro",
        "nofail",
        "noauto",
        "bind",
        "subvol=@",
        "subvol=/../x",
        "subvolid=5",
        "errors=panic",
        "suid",
        "uid=0",
    ]
)
ENTRIES = st.builds(
    fstab.FstabEntry,
    line=st.integers(1, 99),
    spec=SPECS | st.text(min_size=1, max_size=20),
    target=TARGETS,
    fstype=TYPES,
    options=st.lists(OPTIONS, max_size=4).map(tuple),
)
POLICIES = st.sampled_from([ALL, SMALL, READ_ONLY])


@settings(max_examples=400)
@given(st.lists(ENTRIES, max_size=6), POLICIES, st.sampled_from([ROOT, POOL, HOME]))
def test_properties(entries: list[fstab.FstabEntry], policy: PlanPolicy, root: Volume) -> None:
    """S-09, P-06, S-16: whatever the table says, the plan is safe and in order, or a typed error."""
    try:
        made = plan(DISK, fstab.FstabTable(tuple(entries)), policy, root)
    except MapperError:
        return
    assert made.mounts[0].target == "/"
    assert made.mounts[0].volume == root
    targets = [mount.target for mount in made.mounts]
    assert len(set(targets)) == len(targets)
    assert [depth(target) for target in targets] == sorted(depth(target) for target in targets)
    for mount in made.mounts:
        assert mount.volume in DISK
        assert mount.fstype in policy.kernel_filesystems & ALLOWED_FILESYSTEMS
        names = mount.target.split("/")[1:]
        assert mount.target == "/" or not {"", ".", ".."} & set(names)
        assert names[0] not in ("proc", "sys", "dev", "run")
        assert not {"errors=panic", "suid", "uid=0"} & set(mount.options)
        assert ".." not in mount.subvolume
        assert policy.access is Access.READ_WRITE or mount.access is Access.READ_ONLY
    for text in (*made.warnings, *(item.reason for item in made.skipped)):
        text.encode()
        assert text.isprintable() or "\x1b" not in text
    once_more = plan(DISK, fstab.FstabTable(tuple(entries)), policy, root)
    assert once_more == made


def written_down(mount: Mount) -> fstab.FstabEntry:
    """The line of an fstab that asks for a mount."""
    subvolume = (f"subvol={mount.subvolume}",) if mount.subvolume else ()
    access = ("ro",) if mount.access is Access.READ_ONLY else ()
    optional = ("nofail",) if mount.optional else ()
    spec, kind = f"PARTUUID={mount.volume.partition.uuid}", mount.volume.filesystem.type
    return fstab.FstabEntry(
        0, spec, mount.target, kind, (*mount.options, *subvolume, *access, *optional) or ("defaults",)
    )


#: Lines that name a filesystem of the disk, somewhere.
SANE_ENTRIES = st.builds(
    lambda found, target, options: fstab.FstabEntry(
        0, f"UUID={found.filesystem.uuid}", target, found.filesystem.type, options
    ),
    st.sampled_from([BOOT, ESP, HOME, VAR, LOG, POOL]),
    st.lists(st.sampled_from(["a", "b", "ä c", "var", "log\t"]), min_size=1, max_size=3).map(
        lambda names: "/" + "/".join(names)
    ),
    st.lists(st.sampled_from(["ro", "nofail", "noatime", "noexec", "subvol=@", "nodev"]), max_size=3).map(tuple),
)


@settings(max_examples=300)
@given(
    st.lists(SANE_ENTRIES, max_size=5, unique_by=lambda entry: entry.spec),
    POLICIES,
    st.sampled_from([ROOT, POOL, HOME]),
)
def test_round_trip(entries: list[fstab.FstabEntry], policy: PlanPolicy, root: Volume) -> None:
    """A plan that is written down as an fstab, and read and planned again, is the same plan; all of it can be had."""
    try:
        made = plan(DISK, fstab.FstabTable(tuple(entries)), policy, root)
    except MapperError:
        return
    table = fstab.parse(fstab.render(fstab.FstabTable(tuple(map(written_down, made.mounts)))))
    again = plan(DISK, table, policy, root)
    assert again.mounts == made.mounts
    assert again.skipped == ()


@settings(max_examples=300)
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from([b"LABEL=var", b" ", b"/", b"..", b"\\000", b"\n", b"ext4", b"/x", b"nofail", b"="])
    ).map(b"".join)
)
def test_any_file(content: bytes) -> None:
    """No file makes anything but a plan or a typed error."""
    try:
        made = plan(DISK, fstab.parse(content), ALL, ROOT)
    except MapperError:
        return
    assert made.mounts[0].target == "/"
