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

#[test]
fn a_replay_within_its_grace_goes_before_callers_and_all_that_is_due_and_under_the_same_limits() {
    let mut horizon = loaded(pace(1), &[row(1, 60, 5), row(2, 30, 3000)]);
    horizon.handle_demand(GrantId(3));
    horizon.handle_urgent(GrantId(2));
    horizon.handle_urgent(GrantId(2));
    assert_eq!(begun(&mut horizon, NOW), [2], "one at a time");
    horizon.handle_urgent(GrantId(2));
    horizon.handle_end(wrote(2, 2, None));
    assert_eq!(begun(&mut horizon, NOW), [3], "callers are next");
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
    let count = 2 * PAGE as i64;
    let mut table: BTreeMap<GrantId, Due> = (1..=count)
        .map(|id| (GrantId(id), row(id, 900_000 - id, -300)))
        .collect();
    let mut unreadable = None;
    let mut tried = BTreeMap::new();
    for now in [NOW, NOW + secs(5)] {
        while let Some(action) = horizon.poll_action(now) {
            match action {
                Action::Load {
                    after,
                    until,
                    limit,
                } => {
                    let rows = table.values().filter(|row| {
                        row.due_at <= until
                            && after.is_none_or(|after| (row.due_at, row.id) > after)
                    });
                    let mut rows: Vec<Due> = rows.copied().collect();
                    rows.sort_by_key(|row| (row.due_at, row.id));
                    rows.truncate(limit);
                    horizon.handle_page(&rows, until, limit);
                }
                // The store could not give the first one's row: it is due again, in five seconds, at a guess.
                Action::Begin { id, .. } if unreadable.is_none() => {
                    unreadable = Some(id);
                    horizon.handle_end(wrote(id.0, 0, Some(row(id.0, -5, -300))));
                }
                Action::Begin { id, .. } => {
                    *tried.entry(id).or_insert(0) += 1;
                    table.remove(&id);
                    horizon.handle_end(wrote(id.0, 2, None));
                }
            }
        }
    }
    assert!(unreadable.is_some_and(|id| tried.contains_key(&id)));
    assert_eq!(tried.len() as i64, count);
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
    let rows: Vec<Due> = (0..limit as i64).map(|id| row(id, 1000, 900)).collect();
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

/// A table of one provider, worked off: pages are read at once, attempts end at once and leave nothing due.
fn work_off(horizon: &mut Horizon, table: &mut BTreeMap<GrantId, Due>, now: UnixTime) -> Vec<i64> {
    let mut order = Vec::new();
    while let Some(action) = horizon.poll_action(now) {
        match action {
            Action::Load {
                after,
                until,
                limit,
            } => {
                let mut rows: Vec<Due> = table
                    .values()
                    .filter(|row| row.due_at <= until)
                    .filter(|row| after.is_none_or(|after| (row.due_at, row.id) > after))
                    .copied()
                    .collect();
                rows.sort_by_key(|row| (row.due_at, row.id));
                rows.truncate(limit);
                horizon.handle_page(&rows, until, limit);
            }
            Action::Begin { id, .. } => {
                order.push(id.0);
                table.remove(&id);
                horizon.handle_end(wrote(id.0, 2, None));
            }
        }
        assert!(
            horizon.rows.len() <= ENDED_MOST + 2 * PAGE,
            "memory has a bound"
        );
    }
    order
}

#[test]
fn of_100_000_overdue_the_ones_that_can_be_saved_go_first_and_none_is_forgotten() {
    // The living became due last, so they are in the last page of the backlog.
    let table = |ended: i64, living: i64| -> BTreeMap<GrantId, Due> {
        let dead = (0..ended).map(|id| row(id, 100_000 - id / 2, -1));
        let alive = (0..living).map(|id| row(ended + id, 200 - id / 400, 1 + (id * 7919) % living));
        dead.chain(alive).map(|due| (due.id, due)).collect()
    };
    for (ended, living) in [(99_000, 1000), (30_000, 70_000), (150_000, 50_000)] {
        let mut left = table(ended, living);
        let mut by_end: Vec<(Option<UnixTime>, i64)> = left
            .values()
            .filter(|row| row.expires_at > Some(NOW))
            .map(|row| (row.expires_at, row.id.0))
            .collect();
        by_end.sort();
        let mut horizon = Horizon::new(pace(1));
        let order = work_off(&mut horizon, &mut left, NOW);
        assert!(left.is_empty(), "{} were forgotten", left.len());
        assert_eq!(order.len() as i64, ended + living, "each one once");
        let first = &order[..living as usize];
        assert!(
            first.iter().all(|id| *id >= ended),
            "an ended one went before a living one"
        );
        if living <= 1000 {
            let expected: Vec<i64> = by_end.into_iter().map(|(_, id)| id).collect();
            assert_eq!(first, expected, "soonest end first");
        }
    }
}

#[test]
fn a_stopped_provider_of_200_000_grants_holds_a_bounded_part_of_them_and_forgets_none() {
    let mut left: BTreeMap<GrantId, Due> = (0..200_000)
        .map(|id| row(id, -id / 50, 300 + id / 50))
        .map(|due| (due.id, due))
        .collect();
    let mut horizon = Horizon::new(pace(1));
    horizon.pacer().halt(true);
    // Two hours, in which all of them become due and end.
    for minute in 0..120 {
        let began = work_off(&mut horizon, &mut left, NOW + secs(60 * minute));
        assert_eq!(began, [0i64; 0]);
    }
    // A write to a row that was left in the table, and one that ends up among them.
    let write = |horizon: &mut Horizon, left: &mut BTreeMap<GrantId, Due>, due: Due| {
        let due = Due { version: 2, ..due };
        left.insert(due.id, due);
        horizon.handle_write(wrote(due.id.0, 2, Some(due)));
    };
    write(&mut horizon, &mut left, row(190_000, -4000, -4300));
    write(&mut horizon, &mut left, row(300_000, -3700, 90_000));
    horizon.pacer().halt(false);
    let order = work_off(&mut horizon, &mut left, NOW + secs(7200));
    assert_eq!((order.len(), left.len()), (200_001, 0));
}

#[test]
fn after_a_clock_that_was_set_forward_by_hours_the_living_go_first() {
    let mut left: BTreeMap<GrantId, Due> = (0..120_000)
        .map(|id| row(id, -id / 4, 300 + id / 4))
        .map(|due| (due.id, due))
        .collect();
    let mut horizon = Horizon::new(pace(1));
    assert_eq!(work_off(&mut horizon, &mut left, NOW), [0, 1, 2, 3]);
    let order = work_off(&mut horizon, &mut left, NOW + secs(8 * 3600));
    let saved = left.len();
    assert_eq!(order.len() + saved, 120_000 - 4);
    // Due by then and not ended: those of the last 300 seconds.
    let living = |id: &i64| 300 + id / 4 > 8 * 3600;
    let count = order.iter().filter(|id| living(id)).count();
    assert!(count > 1000 && order[..count].iter().all(living), "{count}");
}
