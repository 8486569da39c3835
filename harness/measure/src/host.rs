//! What machine this is: written once per run, to `host.json`. What cannot be seen is left out, never guessed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A description of the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Short, stable name of this machine: hostname and a hash of what the hardware is.
    pub host_id: String,
    /// Name of the machine on its network.
    pub hostname: String,
    /// CPU model as it calls itself.
    pub cpu: String,
    /// CPU vendor.
    pub cpu_vendor: String,
    /// Architecture, as Rust says it: `x86_64`, `aarch64`.
    pub arch: String,
    /// Features that kernels can use; the caller names them.
    pub features: Vec<String>,
    /// Physical cores.
    pub physical_cores: Option<usize>,
    /// Logical cores that this process may run on.
    pub logical_cores: usize,
    /// Bytes per cache, by level and kind: `L1d`, `L2`, `L3` (one instance of each).
    pub cache_bytes: BTreeMap<String, u64>,
    /// Main memory.
    pub memory_bytes: Option<u64>,
    /// Memory free for use at the start.
    pub memory_available_bytes: Option<u64>,
    /// Operating system, with its release.
    pub os: String,
    /// Kernel of the operating system.
    pub os_kernel: String,
    /// Whether a hypervisor lies below.
    pub virtualised: Option<bool>,
    /// Frequency governor of the first core.
    pub governor: Option<String>,
    /// Load average over one minute at the start: what else was running.
    pub load_average: Option<f64>,
}

impl Host {
    /// Describes this machine. `features` are the CPU features that kernels found.
    pub fn describe(features: &[&str]) -> Self {
        let mut host = Self {
            arch: std::env::consts::ARCH.into(),
            os: std::env::consts::OS.into(),
            features: features.iter().map(|&name| name.to_owned()).collect(),
            logical_cores: std::thread::available_parallelism().map_or(1, usize::from),
            ..Self::default()
        };
        imp::fill(&mut host);
        fill_from_cpuid(&mut host);
        if host.cpu.is_empty() {
            host.cpu = format!("unknown {} CPU", host.arch);
        }
        if host.hostname.is_empty() {
            host.hostname = "unknown".into();
        }
        host.host_id = host.make_id();
        host
    }

    /// The largest cache, 0 where unknown: what [`crate::limits`] leaves out of a token's bytes.
    pub fn last_level_cache_bytes(&self) -> u64 {
        self.cache_bytes.values().copied().max().unwrap_or(0)
    }

    /// One line: CPU, cores, memory, system.
    pub fn summary(&self) -> String {
        let memory = self
            .memory_bytes
            .map_or(String::new(), |bytes| format!(", {:.0} GiB", bytes as f64 / (1_u64 << 30) as f64));
        let cores = if self.logical_cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.logical_cores) };
        format!("{} ({cores}{memory}), {} {}", self.cpu, self.os, self.arch)
    }

    /// Hostname plus an FNV-1a hash of the hardware: no serial numbers.
    fn make_id(&self) -> String {
        let what =
            format!("{}|{}|{}|{:?}|{:?}", self.cpu, self.arch, self.logical_cores, self.memory_bytes, self.cache_bytes);
        let hash = what
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        format!("{}-{:08x}", slug(&self.hostname), hash >> 32)
    }
}

/// `text` in lower-case letters, digits and single dashes, for file names.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_matches('-');
    if slug.is_empty() { "unnamed".into() } else { slug.into() }
}

#[cfg(target_arch = "x86_64")]
fn fill_from_cpuid(host: &mut Host) {
    let cpuid = raw_cpuid::CpuId::new();
    if let Some(brand) = cpuid.get_processor_brand_string().filter(|_| host.cpu.is_empty()) {
        host.cpu = brand.as_str().trim().into();
    }
    if let Some(vendor) = cpuid.get_vendor_info().filter(|_| host.cpu_vendor.is_empty()) {
        host.cpu_vendor = vendor.as_str().into();
    }
    host.virtualised = cpuid.get_feature_info().map(|info| info.has_hypervisor());
}

#[cfg(not(target_arch = "x86_64"))]
fn fill_from_cpuid(_host: &mut Host) {}

#[cfg(target_os = "linux")]
mod imp {
    use super::Host;
    use procfs::{Current, LoadAverage, Meminfo};
    use std::collections::BTreeSet;
    use std::path::Path;

    pub(super) fn fill(host: &mut Host) {
        host.hostname = line("/proc/sys/kernel/hostname").unwrap_or_default();
        host.os_kernel = line("/proc/sys/kernel/osrelease").unwrap_or_default();
        if let Some(name) = os_release() {
            host.os = name;
        }
        if let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") {
            fill_cpu(host, &cpuinfo);
        }
        if let Ok(memory) = Meminfo::current() {
            host.memory_bytes = Some(memory.mem_total);
            host.memory_available_bytes = memory.mem_available;
        }
        host.load_average = LoadAverage::current().ok().map(|load| f64::from(load.one));
        host.governor = line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        fill_caches(host, Path::new("/sys/devices/system/cpu/cpu0/cache"));
        if host.cpu.is_empty() {
            // Boards without a CPU name in cpuinfo say what board they are.
            host.cpu = line("/proc/device-tree/model").unwrap_or_default();
        }
    }

    pub(super) fn fill_cpu(host: &mut Host, cpuinfo: &str) {
        let fields =
            || cpuinfo.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim()));
        let first = |name: &str| fields().find(|&(key, _)| key == name).map(|(_, value)| value.to_owned());
        host.cpu = first("model name").unwrap_or_default();
        host.cpu_vendor = first("vendor_id").or_else(|| first("CPU implementer")).unwrap_or_default();
        let mut cores = BTreeSet::new();
        let mut package = String::new();
        for (key, value) in fields() {
            match key {
                "physical id" => package = value.into(),
                "core id" => {
                    cores.insert((package.clone(), value.to_owned()));
                }
                _ => {}
            }
        }
        host.physical_cores = (!cores.is_empty()).then_some(cores.len());
    }

    fn fill_caches(host: &mut Host, folder: &Path) {
        for index in 0..8 {
            let read = |name: &str| line(folder.join(format!("index{index}")).join(name));
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else { continue };
            let Some(bytes) = parse_size(&size) else { continue };
            let suffix = match kind.as_str() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            host.cache_bytes.insert(format!("L{level}{suffix}"), bytes);
        }
    }

    pub(super) fn parse_size(text: &str) -> Option<u64> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let scale = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(scale)
    }

    fn os_release() -> Option<String> {
        let text = std::fs::read_to_string("/etc/os-release").ok()?;
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches('"').to_owned())
    }

    fn line(path: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::Host;

    /// What two portable commands say; the rest stays unknown.
    pub(super) fn fill(host: &mut Host) {
        host.hostname = say("hostname", &[]).unwrap_or_default();
        host.os_kernel = say("uname", &["-r"]).unwrap_or_default();
        if cfg!(target_os = "macos") {
            host.cpu = say("sysctl", &["-n", "machdep.cpu.brand_string"]).unwrap_or_default();
            host.physical_cores = say("sysctl", &["-n", "hw.physicalcpu"]).and_then(|text| text.parse().ok());
            host.memory_bytes = say("sysctl", &["-n", "hw.memsize"]).and_then(|text| text.parse().ok());
        }
    }

    fn say(program: &str, args: &[&str]) -> Option<String> {
        let output = std::process::Command::new(program).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_a_cpu_and_a_round_trip() {
        let host = Host::describe(&["avx2", "fma"]);
        assert!(!host.cpu.is_empty() && host.logical_cores >= 1, "{host:?}");
        assert_eq!(host.features, ["avx2", "fma"]);
        assert_eq!(host.host_id, Host::describe(&[]).host_id);
        let json = serde_json::to_string(&host).expect("serialises");
        assert_eq!(serde_json::from_str::<Host>(&json).expect("parses"), host);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cores_of_two_packages_with_two_threads_each() {
        let cpuinfo = "model name\t: A CPU\nvendor_id\t: Maker\nphysical id\t: 0\ncore id\t: 0\n\nphysical id\t: 0\ncore id\t: 0\n\n\
                       physical id\t: 1\ncore id\t: 0\n\nphysical id\t: 1\ncore id\t: 0\n";
        let mut host = Host::default();
        imp::fill_cpu(&mut host, cpuinfo);
        assert_eq!((host.cpu.as_str(), host.cpu_vendor.as_str(), host.physical_cores), ("A CPU", "Maker", Some(2)));
        assert_eq!(imp::parse_size("512K"), Some(512 << 10));
        assert_eq!(imp::parse_size("32M"), Some(32 << 20));
        assert_eq!(imp::parse_size("x"), None);
    }

    #[test]
    fn slugs_are_safe_file_names() {
        assert_eq!(slug("My Host.local/../x"), "my-host-local-x");
        assert_eq!(slug("///"), "unnamed");
    }
}
