use super::*;

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn pace(max_in_flight: usize) -> Pace {
    Pace {
        max_in_flight,
        rate: None,
    }
}

/// A row that has been due for `late` seconds and whose token has `left` seconds.
fn row(id: i64, late: i64, left: i64) -> Due {
    let at = |offset: i64| UnixTime::from_millis(NOW.as_millis() + offset * 1000);
    Due {
        id: GrantId(id),
        due_at: at(-late),
        expires_at: Some(at(left)),
        version: 1,
    }
}

/// A horizon whose table holds `rows` and nothing more within the window.
fn loaded(pace: Pace, rows: &[Due]) -> Horizon {
    let mut horizon = Horizon::new(pace);
    let Some(Action::Load {
        after,
        until,
        limit,
    }) = horizon.poll_action(NOW)
    else {
        panic!("an empty horizon loads first");
    };
    assert_eq!(after, None);
    horizon.handle_page(rows, until, limit);
    horizon
}

/// A write of a row, or of one that has nothing due any more.
fn wrote(id: i64, version: u64, due: Option<Due>) -> Written {
    Written {
        id: GrantId(id),
        version,
        due: due.map(|due| Due { version, ..due }),
    }
}

fn begun(horizon: &mut Horizon, now: UnixTime) -> Vec<i64> {
    let mut ids = Vec::new();
    while let Some(action) = horizon.poll_action(now) {
        match action {
            Action::Begin { id, .. } => ids.push(id.0),
            Action::Load { until, limit, .. } => horizon.handle_page(&[], until, limit),
        }
    }
    ids
}

#[test]
fn living_tokens_go_first_by_their_end_then_the_ended_ones() {
    let rows = [
        row(1, 500, -400),
        row(2, 60, 240),
        row(3, 90, 20),
        row(4, 900, -800),
        row(5, 10, 100),
    ];
    let mut horizon = loaded(pace(9), &rows);
    assert_eq!(begun(&mut horizon, NOW), [3, 5, 2, 4, 1]);
}

#[test]
fn a_token_that_ends_while_it_waits_joins_the_ended_ones() {
    let mut horizon = loaded(pace(1), &[row(1, 1, 5), row(2, 1, 60), row(3, 1, 90)]);
    assert_eq!(begun(&mut horizon, NOW), [1]);
    horizon.handle_end(wrote(1, 2, None));
    horizon.handle_write(wrote(4, 1, Some(row(4, 3, 8))));
    let later = NOW + secs(30);
    for expected in [2, 3, 4] {
        assert_eq!(begun(&mut horizon, later), [expected]);
        horizon.handle_end(wrote(expected, 2, None));
    }
}

#[test]
fn nothing_begins_before_it_is_due_and_the_timer_says_when_that_is() {
    let mut horizon = loaded(pace(9), &[row(1, -10, 70), row(2, -20, 80)]);
    assert_eq!(begun(&mut horizon, NOW), [0i64; 0]);
    assert_eq!(horizon.poll_timeout(NOW), Some(NOW + secs(10)));
    assert_eq!(begun(&mut horizon, NOW + secs(9)), [0i64; 0]);
    assert_eq!(begun(&mut horizon, NOW + secs(10)), [1]);
    assert_eq!(
        begun(&mut horizon, NOW + secs(10)),
        [0i64; 0],
        "a spurious call"
    );
    assert_eq!(horizon.poll_timeout(NOW + secs(10)), Some(NOW + secs(20)));
}

#[test]
fn a_grant_whose_row_could_not_be_read_is_tried_again_although_a_backlog_fills_the_page() {
    let mut horizon = Horizon::new(pace(1));
    let Some(Action::Load { until, limit, .. }) = horizon.poll_action(NOW) else {
        panic!("an empty horizon loads first");
    };
    let overdue = |id| row(id, 900_000 - id, -300);
    let page: Vec<Due> = (1..=i64::try_from(limit).unwrap()).map(overdue).collect();
    horizon.handle_page(&page, until, limit);
    let Some(Action::Begin { id, .. }) = horizon.poll_action(NOW) else {
        panic!("the longest due begins");
    };
    // Five seconds from now is far behind what has been loaded of this backlog.
    horizon.handle_end(wrote(id.0, 0, Some(row(id.0, -5, -300))));
    let (later, mut tried) = (NOW + secs(5), BTreeSet::new());
    while let Some(action) = horizon.poll_action(later) {
        match action {
            Action::Load { until, limit, .. } => horizon.handle_page(&[], until, limit),
            Action::Begin { id, .. } => {
                tried.insert(id);
                horizon.handle_end(wrote(id.0, 2, None));
            }
        }
    }
    assert!(tried.contains(&id));
    assert_eq!(tried.len(), page.len());
}

#[test]
fn one_attempt_per_grant_whoever_asks() {
    let mut horizon = loaded(pace(9), &[row(1, 1, 60)]);
    horizon.handle_demand(GrantId(1));
    horizon.handle_demand(GrantId(1));
    assert_eq!(begun(&mut horizon, NOW), [1]);
    horizon.handle_demand(GrantId(1));
    horizon.handle_write(wrote(1, 2, Some(row(1, 1, 60))));
    horizon.reload();
    let Some(Action::Load { until, limit, .. }) = horizon.poll_action(NOW) else {
        panic!("a reload loads");
    };
    horizon.handle_page(&[row(1, 1, 60)], until, limit);
    assert_eq!(begun(&mut horizon, NOW), [0i64; 0], "its slot is taken");
    horizon.handle_end(wrote(1, 3, Some(row(1, -100, 160))));
    assert_eq!(begun(&mut horizon, NOW), [0i64; 0]);
    assert_eq!(begun(&mut horizon, NOW + secs(100)), [1]);
}

#[test]
fn a_write_that_a_running_read_may_miss_joins_by_itself() {
    let mut horizon = Horizon::new(pace(9));
    let Some(Action::Load { until, limit, .. }) = horizon.poll_action(NOW) else {
        panic!("an empty horizon loads first");
    };
    horizon.handle_write(wrote(1, 1, Some(row(1, 1, 60))));
    horizon.handle_page(&[], until, limit);
    assert_eq!(begun(&mut horizon, NOW), [1]);
}

#[test]
fn the_newer_version_of_a_row_wins() {
    let mut horizon = Horizon::new(pace(9));
    let Some(Action::Load { until, limit, .. }) = horizon.poll_action(NOW) else {
        panic!("an empty horizon loads first");
    };
    horizon.handle_write(wrote(1, 5, Some(row(1, -50, 110))));
    horizon.handle_page(
        &[Due {
            version: 4,
            ..row(1, 1, 60)
        }],
        until,
        limit,
    );
    assert_eq!(
        begun(&mut horizon, NOW),
        [0i64; 0],
        "the page was read before the write"
    );
    assert_eq!(begun(&mut horizon, NOW + secs(50)), [1]);
}

#[test]
fn a_row_that_moved_beyond_the_bound_or_lost_its_due_time_leaves() {
    let mut horizon = loaded(pace(9), &[row(1, 1, 60), row(2, 1, 60), row(3, 1, 60)]);
    horizon.handle_write(wrote(1, 2, Some(row(1, -86_400, 90_000))));
    horizon.handle_write(wrote(2, 2, None));
    assert_eq!(begun(&mut horizon, NOW), [3]);
}

#[test]
fn a_write_told_before_the_end_of_an_attempt_but_made_after_it_rules() {
    let mut horizon = loaded(pace(9), &[row(1, 1, 60), row(2, 1, 60)]);
    assert_eq!(begun(&mut horizon, NOW), [1, 2]);
    // The attempts ended without anything due; imports made the grants due again at once.
    horizon.handle_write(wrote(1, 4, Some(row(1, 0, 60))));
    horizon.handle_write(wrote(2, 2, Some(row(2, 0, 60))));
    horizon.handle_end(wrote(1, 3, None));
    horizon.handle_end(wrote(2, 3, None));
    assert_eq!(
        begun(&mut horizon, NOW),
        [1],
        "the second attempt wrote last"
    );
}

#[test]
fn an_older_word_about_a_row_changes_nothing() {
    let mut horizon = loaded(pace(9), &[]);
    horizon.handle_write(wrote(1, 5, Some(row(1, 1, 60))));
    horizon.handle_write(wrote(1, 4, None));
    assert_eq!(begun(&mut horizon, NOW), [1]);
}

#[test]
fn a_full_page_is_followed_by_the_next_one_when_it_is_half_worked_off() {
    let mut horizon = Horizon::new(pace(usize::MAX));
    let Some(Action::Load { until, limit, .. }) = horizon.poll_action(NOW) else {
        panic!("an empty horizon loads first");
    };
    let rows: Vec<Due> = (0..limit as i64).map(|id| row(id, 1000, -900)).collect();
    horizon.handle_page(&rows, until, limit);
    let mut begins = 0;
    loop {
        match horizon.poll_action(NOW) {
            Some(Action::Begin { .. }) => begins += 1,
            Some(Action::Load { after, .. }) => {
                let last = rows.last().unwrap();
                assert_eq!(after, Some((last.due_at, last.id)));
                break;
            }
            None => panic!("the rest of the table was forgotten after {begins}"),
        }
    }
    assert!(begins > limit / 2 - 1, "only {begins} of {limit}");
}

#[test]
fn waiting_callers_get_four_of_five_turns_while_the_schedule_has_work() {
    let rows: Vec<Due> = (0..50).map(|id| row(id, 1, 60)).collect();
    let mut horizon = loaded(pace(100), &rows);
    for id in 100..140 {
        horizon.handle_demand(GrantId(id));
    }
    let ids = begun(&mut horizon, NOW);
    let first_fifty: Vec<bool> = ids[..50].iter().map(|id| *id >= 100).collect();
    assert_eq!(first_fifty.iter().filter(|demanded| **demanded).count(), 40);
    assert!(
        first_fifty.chunks(5).all(|five| five.contains(&false)),
        "the schedule is never shut out"
    );
    assert_eq!(ids.len(), 90);
}

#[test]
fn a_load_that_failed_is_asked_for_again() {
    let mut horizon = Horizon::new(pace(1));
    assert!(matches!(
        horizon.poll_action(NOW),
        Some(Action::Load { .. })
    ));
    assert_eq!(horizon.poll_action(NOW), None);
    horizon.handle_load_failure();
    assert!(matches!(
        horizon.poll_action(NOW),
        Some(Action::Load { .. })
    ));
}

/// A schedule of two providers whose tables are loaded.
fn two(max_in_flight: usize, rows_a: &[Due], rows_b: &[Due]) -> Schedule {
    let mut schedule = Schedule::new(max_in_flight);
    schedule.set_provider("a", pace(64));
    schedule.set_provider("b", pace(64));
    let loads: Vec<(String, Action)> = (0..2)
        .map(|_| schedule.poll_action(NOW).expect("both load first"))
        .collect();
    for (name, load) in loads {
        let Action::Load { until, limit, .. } = load else {
            panic!("{load:?}");
        };
        let rows = if name == "a" { rows_a } else { rows_b };
        let horizon = schedule.provider(&name).unwrap();
        horizon.handle_page(rows, until, limit);
    }
    schedule
}

fn begins(schedule: &mut Schedule) -> Vec<(String, i64)> {
    std::iter::from_fn(|| match schedule.poll_action(NOW)? {
        (name, Action::Begin { id, .. }) => Some((name, id.0)),
        other => panic!("{other:?}"),
    })
    .collect()
}

#[test]
fn a_backlog_at_one_provider_does_not_starve_another() {
    let backlog: Vec<Due> = (0..1000).map(|id| row(id, 900, -800)).collect();
    let mut schedule = two(8, &backlog, &[row(2001, 1, 60), row(2002, 1, 60)]);
    let first = begins(&mut schedule);
    assert_eq!(first.len(), 8, "the global cap");
    assert_eq!(first.iter().filter(|(name, _)| name == "b").count(), 2);
}

#[test]
fn a_halted_provider_holds_up_nobody() {
    let backlog: Vec<Due> = (0..100).map(|id| row(id, 900, -800)).collect();
    let mut schedule = two(8, &backlog, &[row(2001, 1, 60)]);
    schedule.provider("a").unwrap().pacer().halt(true);
    assert_eq!(begins(&mut schedule), [("b".to_owned(), 2001)]);
    schedule.provider("a").unwrap().pacer().halt(false);
    assert_eq!(begins(&mut schedule).len(), 7);
}

#[test]
fn a_provider_that_left_the_configuration_frees_its_places() {
    let mut schedule = two(2, &[row(1, 1, 60), row(2, 1, 60)], &[]);
    assert_eq!(begins(&mut schedule).len(), 2);
    schedule.retain_providers(|name| name == "b");
    schedule.handle_end("a", wrote(1, 2, Some(row(1, -60, 120))));
    assert_eq!(schedule.in_flight(), 0);
}
