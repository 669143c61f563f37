//! Calls of macOS without a safe wrapper: all unsafe code of the agent. Each returns plain values, and judges nothing.
#![expect(unsafe_code, reason = "these calls have no safe wrappers")]

use std::{
    ffi::{c_char, c_int},
    mem::MaybeUninit,
    os::fd::AsRawFd as _,
};

use core_foundation::{
    base::{CFAllocatorRef, CFType, CFTypeRef, TCFType as _, kCFAllocatorDefault},
    dictionary::{CFDictionary, CFDictionaryRef, CFMutableDictionaryRef},
    number::CFNumber,
    string::{CFString, CFStringRef},
};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::probe::{mac::system::Pages, parse::mac::gpu::Accelerator};

/// `SZOMB` of `<sys/proc.h>`.
const ZOMBIE: u32 = 5;

pub(super) fn process_start(pid: u32) -> Option<u64> {
    let pid = c_int::try_from(pid).ok()?;
    let size = c_int::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    let mut info = MaybeUninit::<libc::proc_bsdinfo>::zeroed();
    // SAFETY: the buffer is valid for `size` bytes, and the call writes no more than that.
    let written =
        unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, info.as_mut_ptr().cast(), size) };
    if written != size {
        return None;
    }
    // SAFETY: the call said that it filled the whole structure, which is plain integers.
    let info = unsafe { info.assume_init() };
    (info.pbi_status != ZOMBIE)
        .then(|| info.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(info.pbi_start_tvusec))
}

pub(super) fn footprint_bytes(pid: u32) -> Option<u64> {
    let pid = c_int::try_from(pid).ok()?;
    let mut usage = MaybeUninit::<libc::rusage_info_v4>::zeroed();
    // SAFETY: the buffer is the structure of the version that is asked for, and the call writes no more than that.
    let result = unsafe { libc::proc_pid_rusage(pid, libc::RUSAGE_INFO_V4, usage.as_mut_ptr().cast()) };
    // SAFETY: it began as zeros, and the call wrote plain integers.
    (result == 0).then(|| unsafe { usage.assume_init() }.ri_phys_footprint)
}

unsafe extern "C" {
    // libc's own declaration is deprecated in favour of a crate that is nothing but declarations.
    safe fn mach_host_self() -> libc::mach_port_t;
}

/// Memory, by `host_statistics64`.
#[must_use]
pub fn pages() -> Option<Pages> {
    let mut statistics = MaybeUninit::<libc::vm_statistics64>::zeroed();
    let mut count = libc::HOST_VM_INFO64_COUNT;
    // SAFETY: the buffer holds `count` integers, and the call writes no more than that. The port of the host is no resource
    // that each call would use up.
    let result = unsafe {
        libc::host_statistics64(
            mach_host_self(),
            libc::HOST_VM_INFO64,
            statistics.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    if result != libc::KERN_SUCCESS {
        return None;
    }
    // SAFETY: it began as zeros, and the call wrote plain integers.
    let statistics = unsafe { statistics.assume_init() };
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(Pages {
        page_bytes: u64::try_from(page_bytes).ok()?,
        free: statistics.free_count.into(),
        inactive: statistics.inactive_count.into(),
        wired: statistics.wire_count.into(),
    })
}

/// Load average over one minute.
#[must_use]
pub fn load_1m() -> Option<f64> {
    let mut load = [0.0_f64; 1];
    // SAFETY: the buffer holds the one number that is asked for.
    let written = unsafe { libc::getloadavg(load.as_mut_ptr(), 1) };
    (written == 1 && load[0].is_finite() && load[0] >= 0.0).then_some(load[0])
}

/// `struct ifmediareq` of `<net/if.h>`.
#[repr(C)]
struct MediaRequest {
    name: [c_char; libc::IFNAMSIZ],
    current: c_int,
    mask: c_int,
    status: c_int,
    active: c_int,
    count: c_int,
    list: *mut c_int,
}

/// `IFM_AVALID` of `<net/if_media.h>`: the other bit means something.
const STATUS_VALID: c_int = 1;
/// `IFM_ACTIVE`: something is at the other end.
const STATUS_ACTIVE: c_int = 2;

nix::ioctl_readwrite! {
    /// `SIOCGIFMEDIA` of `<sys/sockio.h>`, which `ifconfig` calls for its line `status:`.
    get_media, b'i', 56, MediaRequest
}

/// Whether something is at the other end of an interface; `None` for one without such a state, as a loopback.
#[must_use]
pub fn carrier(interface: &str) -> Option<bool> {
    let mut request = MediaRequest {
        name: [0; libc::IFNAMSIZ],
        current: 0,
        mask: 0,
        status: 0,
        active: 0,
        // No list of media is asked for.
        count: 0,
        list: std::ptr::null_mut(),
    };
    // One byte is left for the end of the name.
    if interface.len() >= request.name.len() {
        return None;
    }
    for (to, from) in request.name.iter_mut().zip(interface.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).ok()?;
    // SAFETY: the structure is what the call wants, and the list it may fill is said to be empty.
    unsafe { get_media(socket.as_raw_fd(), &raw mut request) }.ok()?;
    (request.status & STATUS_VALID != 0).then_some(request.status & STATUS_ACTIVE != 0)
}

/// `io_object_t` of `<IOKit/IOTypes.h>`.
type IoObject = libc::mach_port_t;

#[link(name = "IOKit", kind = "framework")]
unsafe extern "C" {
    fn IOServiceMatching(name: *const c_char) -> CFMutableDictionaryRef;
    fn IOServiceGetMatchingService(main_port: libc::mach_port_t, matching: CFDictionaryRef) -> IoObject;
    fn IORegistryEntryCreateCFProperty(
        entry: IoObject,
        key: CFStringRef,
        allocator: CFAllocatorRef,
        options: u32,
    ) -> CFTypeRef;
    fn IOObjectRelease(object: IoObject) -> libc::kern_return_t;
}

/// An entry of the registry, given back when it is dropped.
struct Entry(IoObject);

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: the entry is ours, and this is the only place that gives it back.
        let _ = unsafe { IOObjectRelease(self.0) };
    }
}

impl Entry {
    fn property(&self, key: &str) -> Option<CFType> {
        let key = CFString::new(key);
        // SAFETY: entry and key live through the call, and whatever it gives is ours to release.
        unsafe {
            let value =
                IORegistryEntryCreateCFProperty(self.0, key.as_concrete_TypeRef(), kCFAllocatorDefault, 0);
            (!value.is_null()).then(|| CFType::wrap_under_create_rule(value))
        }
    }
}

/// The GPU, by its entry in the registry (FIELD-NOTES 3).
#[must_use]
pub fn accelerator() -> Option<Accelerator> {
    // SAFETY: the name ends with a zero byte. The second call takes the dictionary over; port 0 is the main one.
    let entry = unsafe {
        let matching = IOServiceMatching(c"IOAccelerator".as_ptr());
        if matching.is_null() {
            return None;
        }
        IOServiceGetMatchingService(0, matching.cast_const())
    };
    if entry == 0 {
        return None;
    }
    let entry = Entry(entry);
    let statistics =
        entry.property("PerformanceStatistics").and_then(|value| value.downcast_into::<CFDictionary>());
    let statistic = |name: &str| {
        let key = CFString::new(name);
        let value = statistics.as_ref()?.find(key.as_CFTypeRef())?;
        // SAFETY: the dictionary owns the value and lives on; wrapping it takes a reference of our own.
        let value = unsafe { CFType::wrap_under_get_rule(value.cast()) };
        value.downcast_into::<CFNumber>()?.to_i64().and_then(|number| u64::try_from(number).ok())
    };
    let text = |key: &str| Some(entry.property(key)?.downcast_into::<CFString>()?.to_string());
    let cores = entry.property("gpu-core-count").and_then(|value| value.downcast_into::<CFNumber>());
    Some(Accelerator {
        model: text("model"),
        cores: cores.and_then(|cores| cores.to_i64()).and_then(|cores| u32::try_from(cores).ok()),
        recovery_count: statistic("recoveryCount"),
        in_use_bytes: statistic("In use system memory"),
    })
}
