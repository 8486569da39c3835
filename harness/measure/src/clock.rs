//! The clock: monotonic for durations, UTC for time stamps.

use std::time::Instant;

/// Runs `work` and returns its result and how long it took, in nanoseconds of the monotonic clock.
pub fn time_ns<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let start = Instant::now();
    let value = work();
    let elapsed = start.elapsed();
    (value, u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Now, in UTC, as RFC 3339 with whole seconds.
pub fn now_rfc3339() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Today, in UTC, as `2026-01-31`.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_takes_at_least_its_time() {
        let ((), ns) = time_ns(|| std::thread::sleep(std::time::Duration::from_millis(2)));
        assert!(ns >= 2_000_000);
    }

    #[test]
    fn time_stamps_look_like_rfc_3339() {
        let now = now_rfc3339();
        assert_eq!(now.len(), 20, "{now}");
        assert!(now.parse::<jiff::Timestamp>().is_ok());
        assert!(now.starts_with(&today()) || now.ends_with("00:00:00Z"));
    }
}
