//! How much memory this process uses: resident, peak, and how much of it is mapped files. Linux only; elsewhere `None`.

/// The process's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident now (`VmRSS`).
    pub rss_bytes: u64,
    /// Most ever resident, or since [`reset_peak`] (`VmHWM`).
    pub peak_rss_bytes: u64,
    /// Resident, with pages that several processes share counted in part (`smaps_rollup` Pss).
    pub pss_bytes: Option<u64>,
    /// Resident pages of this process alone (clean and dirty).
    pub private_bytes: Option<u64>,
    /// Resident pages that are mapped from files, model files above all (`RssFile`).
    pub file_mapped_bytes: Option<u64>,
}

/// The memory of this process, or `None` where the system does not say.
pub fn read() -> Option<ProcessMemory> {
    imp::read()
}

/// Makes the peak start over from what is resident now. Says whether that was permitted; where it was not, the peak is
/// that of the whole life of the process.
pub fn reset_peak() -> bool {
    imp::reset_peak()
}

/// Makes the allocator give every freed block above 1 MiB back to the system at once. glibc's own limit grows with the blocks it
/// sees, up to 32 MiB, so that a matrix freed after packing (18 MB) would stay resident and count as the model's. Call it at the
/// start of the program; where the allocator is another one it does nothing.
pub fn return_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers by value and has no other precondition; a value it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20)
    };
}

#[cfg(target_os = "linux")]
mod imp {
    use super::ProcessMemory;
    use procfs::process::{ClearRefs, Process};

    pub(super) fn read() -> Option<ProcessMemory> {
        let process = Process::myself().ok()?;
        let status = process.status().ok()?;
        let kib = |value: Option<u64>| value.map(|kib| kib * 1024);
        let rollup = process.smaps_rollup().ok();
        let rollup = rollup.as_ref().and_then(|rollup| rollup.memory_map_rollup.0.first());
        // procfs gives smaps values in bytes already.
        let smaps = |name: &str| rollup.and_then(|map| map.extension.map.get(name).copied());
        Some(ProcessMemory {
            rss_bytes: kib(status.vmrss)?,
            peak_rss_bytes: kib(status.vmhwm)?,
            pss_bytes: smaps("Pss"),
            private_bytes: smaps("Private_Clean").zip(smaps("Private_Dirty")).map(|(clean, dirty)| clean + dirty),
            file_mapped_bytes: kib(status.rssfile),
        })
    }

    pub(super) fn reset_peak() -> bool {
        Process::myself().and_then(|process| process.clear_refs(ClearRefs::PeakRSS)).is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::ProcessMemory;

    pub(super) fn read() -> Option<ProcessMemory> {
        None
    }

    pub(super) fn reset_peak() -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_seen_and_the_peak_can_start_over() {
        const SIZE: usize = 64 << 20;
        let before = read().expect("Linux says");
        let block = std::hint::black_box(vec![1_u8; SIZE]);
        let during = read().expect("Linux says");
        assert!(during.rss_bytes >= before.rss_bytes + SIZE as u64 * 9 / 10, "{before:?} {during:?}");
        assert!(during.peak_rss_bytes >= during.rss_bytes * 9 / 10);
        let pss = during.pss_bytes.expect("smaps_rollup");
        assert!(pss > SIZE as u64 * 9 / 10 && pss < during.rss_bytes * 2, "{during:?}");
        assert!(during.private_bytes.expect("smaps_rollup") > SIZE as u64 * 9 / 10);
        drop(block);
        if reset_peak() {
            let after = read().expect("Linux says");
            assert!(after.peak_rss_bytes + SIZE as u64 / 2 < during.peak_rss_bytes, "{during:?} {after:?}");
        }
    }
}
