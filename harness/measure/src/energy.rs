//! Joules from the machine's own counters: RAPL through Linux's powercap, or energy sensors of hwmon.
//!
//! A reading covers the whole package, whoever used it, idle power included, so it means something only on a quiet machine. Where
//! there is no counter, or it may not be read, results say so instead of estimating.

use std::path::{Path, PathBuf};

/// Where Linux keeps its devices; tests bring their own.
pub const SYS: &str = "/sys";

/// Why no energy is measured. Shown after `not measured: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEnergy {
    /// Neither powercap nor hwmon has a counter.
    #[error("not measured: no counter")]
    NoCounter,
    /// There is one, for root only.
    #[error("not measured: {} may not be read (try as root, or chmod a+r it)", .0.display())]
    Forbidden(PathBuf),
    /// The measurement includes what is not part of the result.
    #[error("not measured: the counters would include {0}")]
    Mixed(&'static str),
}

/// The energy counters of every CPU package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    source: String,
    counters: Vec<Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counter {
    path: PathBuf,
    /// After this many microjoules the counter starts over.
    range_uj: u64,
}

/// The counters at one moment, in microjoules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading(Vec<u64>);

impl Counters {
    /// The counters under `sys` (see [`SYS`]): RAPL packages, or else the sockets of hwmon.
    ///
    /// # Errors
    /// When there is none, or it may not be read.
    pub fn open(sys: &Path) -> Result<Self, NoEnergy> {
        let found = [rapl(sys), hwmon(sys)].into_iter().find(|(_, counters)| !counters.is_empty());
        let (names, counters): (Vec<String>, Vec<Counter>) = match found {
            Some((kind, counters)) => counters.into_iter().map(|(name, c)| (format!("{kind} {name}"), c)).unzip(),
            None => return Err(NoEnergy::NoCounter),
        };
        for counter in &counters {
            number(&counter.path).ok_or_else(|| NoEnergy::Forbidden(counter.path.clone()))?;
        }
        Ok(Self { source: names.join(" + "), counters })
    }

    /// Which counters these are: `rapl package-0 + rapl package-1`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Reads all of them. `None` when one cannot be read any more.
    pub fn read(&self) -> Option<Reading> {
        self.counters.iter().map(|counter| number(&counter.path)).collect::<Option<_>>().map(Reading)
    }

    /// Joules from one reading to a later one. A counter that started over once in between is seen through.
    pub fn joules(&self, before: &Reading, after: &Reading) -> f64 {
        let spent = |((counter, &before), &after): ((&Counter, &u64), &u64)| match after.checked_sub(before) {
            Some(spent) => spent,
            None => counter.range_uj.saturating_sub(before) + after,
        };
        let counters = self.counters.iter().zip(&before.0).zip(&after.0);
        counters.map(spent).sum::<u64>() as f64 / 1e6
    }
}

/// The packages of powercap. Zones within a package (`core`, `dram`) are left out: the first is part of it, the second is not in
/// every machine, and sums over different parts cannot be compared. `psys` covers the packages again.
fn rapl(sys: &Path) -> (&'static str, Vec<(String, Counter)>) {
    let zone = |folder: PathBuf| {
        let name = text(&folder.join("name"))?;
        let range_uj = number(&folder.join("max_energy_range_uj")).unwrap_or(u64::MAX);
        let path = folder.join("energy_uj");
        (name.starts_with("package") && path.exists()).then_some((name, Counter { path, range_uj }))
    };
    let top = |folder: &PathBuf| {
        folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.matches(':').count() == 1)
    };
    ("rapl", folders(&sys.join("class/powercap")).into_iter().filter(top).filter_map(zone).collect())
}

/// The sockets that hwmon knows (`amd_energy`: label `Esocket0`), counters of 64 bits.
fn hwmon(sys: &Path) -> (&'static str, Vec<(String, Counter)>) {
    let sensors = |folder: PathBuf| {
        let files = folders(&folder).into_iter();
        let socket = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.to_owned();
            let number = name.strip_prefix("energy")?.strip_suffix("_input")?;
            let label = text(&folder.join(format!("energy{number}_label")))?;
            label.starts_with("Esocket").then_some((label, Counter { path, range_uj: u64::MAX }))
        };
        files.filter_map(socket).collect::<Vec<_>>()
    };
    ("hwmon", folders(&sys.join("class/hwmon")).into_iter().flat_map(sensors).collect())
}

/// What lies in a folder, sorted; nothing where it is not there.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, contents: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        std::fs::write(path, contents).expect("writes");
    }

    #[test]
    fn rapl_packages_are_summed_and_overflow_is_seen_through() {
        let root = tempfile::tempdir().expect("temporary folder");
        for (zone, name, energy) in [
            ("intel-rapl:0", "package-0", "1000000"),
            ("intel-rapl:0:0", "core", "5"),
            ("intel-rapl:1", "package-1", "262143000000"),
            ("intel-rapl:2", "psys", "7"),
        ] {
            write(root.path(), &format!("class/powercap/{zone}/name"), &format!("{name}\n"));
            write(root.path(), &format!("class/powercap/{zone}/energy_uj"), &format!("{energy}\n"));
            write(root.path(), &format!("class/powercap/{zone}/max_energy_range_uj"), "262143328850\n");
        }
        let counters = Counters::open(root.path()).expect("counters");
        assert_eq!(counters.source(), "rapl package-0 + rapl package-1");
        let before = counters.read().expect("readable");
        write(root.path(), "class/powercap/intel-rapl:0/energy_uj", "3500000\n");
        write(root.path(), "class/powercap/intel-rapl:1/energy_uj", "671150\n");
        let after = counters.read().expect("readable");
        // 2.5 J on the first; 0.32885 J to the end of the second and 0.67115 J after it started over.
        assert!((counters.joules(&before, &after) - 3.5).abs() < 1e-9);
        std::fs::remove_file(root.path().join("class/powercap/intel-rapl:0/energy_uj")).expect("removes");
        assert_eq!(counters.read(), None);
    }

    #[test]
    fn hwmon_sockets_stand_in_where_there_is_no_rapl() {
        let root = tempfile::tempdir().expect("temporary folder");
        for (n, label) in [(1, "Ecore000"), (2, "Esocket0")] {
            write(root.path(), &format!("class/hwmon/hwmon0/energy{n}_label"), label);
            write(root.path(), &format!("class/hwmon/hwmon0/energy{n}_input"), "2000000");
        }
        let counters = Counters::open(root.path()).expect("counters");
        assert_eq!(counters.source(), "hwmon Esocket0");
        let before = counters.read().expect("readable");
        write(root.path(), "class/hwmon/hwmon0/energy2_input", "2250000");
        assert!((counters.joules(&before, &counters.read().expect("readable")) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn without_a_counter_there_is_a_reason_and_no_number() {
        let root = tempfile::tempdir().expect("temporary folder");
        assert_eq!(Counters::open(root.path()).expect_err("none").to_string(), "not measured: no counter");
        write(root.path(), "class/powercap/intel-rapl:0/name", "package-0");
        // Root reads what it may not, so an unreadable counter is one that holds no number.
        write(root.path(), "class/powercap/intel-rapl:0/energy_uj", "");
        let error = Counters::open(root.path()).expect_err("unreadable").to_string();
        assert!(error.starts_with("not measured: ") && error.contains("energy_uj"), "{error}");
    }
}
