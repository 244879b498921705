//! Dates for `strftime_now`: the C library's format codes in UTC and English, as far as
//! templates use them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// From Sunday, 0.
    weekday: usize,
    /// From 1.
    day_of_year: i64,
}

impl Moment {
    fn utc(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let mut year = 1970 + days.div_euclid(366);
        while days >= days_before_year(year + 1) {
            year += 1;
        }
        let day_of_year = days - days_before_year(year);
        let mut month = 0;
        let mut first = 0;
        while day_of_year >= first + days_in_month(year, month) {
            first += days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: day_of_year - first + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: (days + 4).rem_euclid(7) as usize,
            day_of_year: day_of_year + 1,
        }
    }

    fn hour_of_12(&self) -> i64 {
        (self.hour + 11) % 12 + 1
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: usize) -> i64 {
    match month {
        1 => 28 + i64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of `year`.
fn days_before_year(year: i64) -> i64 {
    let leap_days = |y: i64| y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

/// `time` in UTC by the format codes of C's `strftime`; a `-` after the `%` takes off padding.
/// An unknown code is an error that names it.
pub(super) fn format_utc(time: SystemTime, format: &str) -> Result<String, String> {
    let moment = Moment::utc(time);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let (padded, code) = match chars.next() {
            Some('-') => (false, chars.next()),
            code => (true, code),
        };
        let code = code.ok_or("strftime_now: the format ends within a code")?;
        write_code(&mut text, &moment, code, padded)
            .ok_or_else(|| format!("strftime_now: the code %{code} is not supported"))?;
    }
    Ok(text)
}

fn write_code(text: &mut String, moment: &Moment, code: char, padded: bool) -> Option<()> {
    let number = |text: &mut String, value: i64, width: usize| {
        let width = if padded { width } else { 0 };
        let _ = write!(text, "{value:0width$}");
    };
    let month = MONTHS[moment.month];
    let day = DAYS[moment.weekday];
    match code {
        'Y' => number(text, moment.year, 4),
        'y' => number(text, moment.year.rem_euclid(100), 2),
        'm' => number(text, moment.month as i64 + 1, 2),
        'd' => number(text, moment.day, 2),
        'e' => {
            let _ = write!(text, "{:>2}", moment.day);
        }
        'j' => number(text, moment.day_of_year, 3),
        'H' => number(text, moment.hour, 2),
        'I' => number(text, moment.hour_of_12(), 2),
        'M' => number(text, moment.minute, 2),
        'S' => number(text, moment.second, 2),
        'p' => text.push_str(if moment.hour < 12 { "AM" } else { "PM" }),
        'B' => text.push_str(month),
        'b' | 'h' => text.push_str(&month[..3]),
        'A' => text.push_str(day),
        'a' => text.push_str(&day[..3]),
        'F' => {
            let _ = write!(text, "{:04}-{:02}-{:02}", moment.year, moment.month + 1, moment.day);
        }
        'T' => {
            let _ = write!(text, "{:02}:{:02}:{:02}", moment.hour, moment.minute, moment.second);
        }
        // A time without a zone, as Python's `datetime.now()` has it.
        'Z' | 'z' => {}
        'n' => text.push('\n'),
        't' => text.push('\t'),
        '%' => text.push('%'),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        format_utc(UNIX_EPOCH + Duration::from_secs(seconds), format).unwrap()
    }

    #[test]
    fn known_moments_are_written_right() {
        assert_eq!(at(0, "%A %d %B %Y %T"), "Thursday 01 January 1970 00:00:00");
        assert_eq!(at(951_782_400, "%F %j %a"), "2000-02-29 060 Tue");
        assert_eq!(at(1_735_689_599, "%Y-%m-%d %I:%M:%S %p"), "2024-12-31 11:59:59 PM");
        assert_eq!(at(4_107_542_400, "%d %b %Y"), "01 Mar 2100");
        assert_eq!(at(1_721_779_200, "%-d/%-m/%y %H%%"), "24/7/24 00%");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut previous = Moment::utc(UNIX_EPOCH);
        for day in 1..146_097_u64 {
            let moment = Moment::utc(UNIX_EPOCH + Duration::from_secs(day * 86_400));
            let next_month = moment.day == 1
                && previous.day == days_in_month(previous.year, previous.month)
                && moment.month == (previous.month + 1) % 12;
            assert!(
                next_month || (moment.day == previous.day + 1 && moment.month == previous.month)
            );
            assert_eq!(moment.weekday, (previous.weekday + 1) % 7);
            previous = moment;
        }
        assert_eq!(previous.year, 2369);
    }

    #[test]
    fn an_unknown_code_is_an_error() {
        assert!(format_utc(UNIX_EPOCH, "%Q").unwrap_err().contains("%Q"));
        assert!(format_utc(UNIX_EPOCH, "50%").is_err());
    }
}
