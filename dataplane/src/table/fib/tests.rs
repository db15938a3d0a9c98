use proptest::prelude::*;

use super::*;

/// The obvious model: try every route. Ties in length are one prefix, of which the last route wins.
fn longest<K: FibKey>(routes: &[(K, u8, u32)], address: K) -> Option<u32> {
    let covers = |prefix: K, length: u8| (0..length).all(|bit| bit_of(prefix, bit) == bit_of(address, bit));
    let mut best: Option<(u8, u32)> = None;
    for &(prefix, length, value) in routes {
        let length = length.min(K::BITS);
        if covers(prefix, length) && best.is_none_or(|(longest, _)| length >= longest) {
            best = Some((length, value));
        }
    }
    best.map(|(_, value)| value).filter(|&value| value <= Fib::<K>::MAX_VALUE)
}

fn bit_of<K: FibKey>(address: K, bit: u8) -> bool {
    (address >> u32::from(K::BITS - 1 - bit)) & K::ONE == K::ONE
}

/// Addresses at which something may change: ends of each prefix and their neighbours.
fn interesting<K: FibKey>(routes: &[(K, u8, u32)]) -> Vec<K> {
    let mut addresses = vec![K::ZERO, !K::ZERO];
    for &(prefix, length, _) in routes {
        let length = u32::from(length.min(K::BITS));
        let block = if length == 0 { K::ZERO } else { !K::ZERO << (u32::from(K::BITS) - length) };
        let (first, last) = (prefix & block, prefix | !block);
        addresses.extend([prefix, first, last]);
        if first != K::ZERO {
            addresses.push(first - K::ONE);
        }
        if last != !K::ZERO {
            addresses.push(last + K::ONE);
        }
    }
    addresses
}

fn check<K: FibKey>(routes: &[(K, u8, u32)], others: impl IntoIterator<Item = K>) {
    let fib = Fib::new(routes.iter().copied());
    for address in interesting(routes).into_iter().chain(others) {
        assert_eq!(fib.lookup(address), longest(routes, address), "address {address:x?} in {routes:x?}");
    }
    assert!(fib.depth() <= usize::from(K::BITS));
}

fn v4(text: &str) -> u32 {
    text.parse::<std::net::Ipv4Addr>().unwrap().to_bits()
}

fn v6(text: &str) -> u128 {
    text.parse::<std::net::Ipv6Addr>().unwrap().to_bits()
}

#[test]
fn the_empty_table_owns_nothing_and_finds_nothing() {
    let fib = Fib::<u32>::default();
    assert_eq!((fib.bytes(), fib.len(), fib.is_empty(), fib.lookup(0), fib.lookup(!0)), (0, 0, true, None, None));
    assert_eq!(Fib::<u128>::new([]).lookup(1), None);
}

#[test]
fn a_default_route_covers_everything_and_takes_no_words() {
    let fib = Fib::new([(v4("1.2.3.4"), 0, 7)]);
    assert_eq!((fib.lookup(0), fib.lookup(!0), fib.lookup_bytes()), (Some(7), Some(7), 0));
    let fib = Fib::new([(v6("2001:db8::"), 0, 8)]);
    assert_eq!((fib.lookup(0), fib.lookup(!0)), (Some(8), Some(8)));
}

#[test]
fn the_longest_prefix_wins_ipv4() {
    let routes = [
        (v4("0.0.0.0"), 0, 1),
        (v4("10.0.0.0"), 8, 2),
        (v4("10.244.0.0"), 16, 3),
        (v4("10.244.7.0"), 24, 4),
        (v4("10.244.7.9"), 32, 5),
        (v4("255.255.255.255"), 32, 6),
    ];
    let fib = Fib::new(routes);
    for (address, value) in [
        ("9.255.255.255", 1),
        ("10.0.0.0", 2),
        ("10.244.6.255", 3),
        ("10.244.7.8", 4),
        ("10.244.7.9", 5),
        ("10.244.7.10", 4),
        ("10.244.8.0", 3),
        ("255.255.255.254", 1),
        ("255.255.255.255", 6),
    ] {
        assert_eq!(fib.lookup(v4(address)), Some(value), "{address}");
    }
    assert_eq!(fib.iter().collect::<Vec<_>>(), routes);
    check(&routes, []);
}

#[test]
fn the_longest_prefix_wins_ipv6_across_both_halves() {
    let routes = [
        (v6("fd00:10:244::"), 48, 1),
        (v6("fd00:10:244:1::"), 64, 2),
        (v6("fd00:10:244:1::5"), 128, 3),
        (v6("fd00:10:244:1:8000::"), 65, 4),
        (v6("fd00:10:244:2::"), 63, 5),
        (v6("::"), 128, 6),
        (v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), 128, 7),
    ];
    let fib = Fib::new(routes);
    assert_eq!(fib.lookup(v6("fd00:10:244:1::5")), Some(3));
    assert_eq!(fib.lookup(v6("fd00:10:244:1::6")), Some(2));
    assert_eq!(fib.lookup(v6("fd00:10:244:1:8000::5")), Some(4));
    assert_eq!(fib.lookup(v6("fd00:10:244:3::5")), Some(5));
    assert_eq!(fib.lookup(v6("fd00:10:245::")), None);
    // The same low half under another high half.
    assert_eq!(fib.lookup(v6("fd00:10:244:9::5")), Some(1));
    check(&routes, []);
}

#[test]
fn host_bits_are_ignored_long_lengths_are_cut_and_the_last_duplicate_wins() {
    let fib = Fib::new([(v4("10.1.2.3"), 24, 1), (v4("10.1.2.4"), 24, 2), (v4("10.9.9.9"), 200, 3)]);
    assert_eq!(fib.iter().collect::<Vec<_>>(), [(v4("10.1.2.0"), 24, 2), (v4("10.9.9.9"), 32, 3)]);
    assert_eq!((fib.lookup(v4("10.1.2.200")), fib.lookup(v4("10.9.9.9"))), (Some(2), Some(3)));
}

#[test]
fn a_value_out_of_range_means_no_route() {
    let fib =
        Fib::new([(v4("10.0.0.0"), 8, 1), (v4("10.1.0.0"), 16, 1 << 31), (v4("10.2.0.0"), 16, Fib::<u32>::MAX_VALUE)]);
    assert_eq!(fib.lookup(v4("10.1.0.1")), None);
    assert_eq!(fib.lookup(v4("10.2.0.1")), Some(Fib::<u32>::MAX_VALUE));
    assert_eq!(fib.lookup(v4("10.3.0.1")), Some(1));
}

#[test]
fn nested_to_the_last_bit() {
    let routes: Vec<_> = (0..=32).map(|length| (0x8000_0001_u32, length, u32::from(length))).collect();
    check(&routes, (0..32).map(|bit| 0x8000_0001 ^ 1 << bit));
    let routes: Vec<_> = (0..=128).map(|length| (v6("2001:db8::1"), length, u32::from(length))).collect();
    check(&routes, (0..128).map(|bit| v6("2001:db8::1") ^ 1 << bit));
}

#[test]
fn too_many_routes_are_refused_and_the_limit_itself_is_not() {
    let limit = limits::MAX_ROUTES as u32;
    let routes = |count: u32| (0..count).map(|number| (number << 8, 24, number));
    assert_eq!(Fib::try_new(routes(limit + 1)).unwrap_err(), TooManyRoutes(limits::MAX_ROUTES + 1));
    assert_eq!(Fib::new(routes(limit + 1)).lookup(0), None);
    let fib = Fib::try_new(routes(limit)).unwrap();
    assert_eq!((fib.len(), fib.lookup((limit - 1) << 8)), (limits::MAX_ROUTES, Some(limit - 1)));
    // Duplicates do not count.
    assert!(Fib::try_new(routes(limit).chain([(0, 24, 9)])).is_ok());
}

#[test]
fn adjacent_prefixes_of_one_value_become_one_range() {
    let halves = [(0, 1, 5), (1 << 31, 1, 5)];
    assert_eq!(Fib::<u32>::new(halves).lookup_bytes(), 0);
    check(&halves, [1, 77]);
}

#[test]
fn a_cluster_of_node_cidrs_is_one_small_node() {
    let fib = Fib::new((0..100_u32).map(|node| (v4("10.244.0.0") | node << 8, 24, node)).chain([(0, 0, 1000)]));
    assert_eq!(fib.depth(), 1);
    assert!(fib.lookup_bytes() <= (100 + 4) * 4, "{} bytes", fib.lookup_bytes());
    let fib = Fib::new((0..100_u128).map(|node| (v6("fd00:10:244::") | node << 64, 64, node as u32)));
    assert_eq!(fib.depth(), 1);
}

fn any_value() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..4_u32, 2 => 0..=Fib::<u32>::MAX_VALUE, 1 => Just(u32::MAX)]
}

/// Prefixes all over the address space, of any length, with host bits.
fn scattered4() -> impl Strategy<Value = Vec<(u32, u8, u32)>> {
    prop::collection::vec((any::<u32>(), 0..=34_u8, any_value()), 0..60)
}

fn scattered6() -> impl Strategy<Value = Vec<(u128, u8, u32)>> {
    prop::collection::vec((any::<u128>(), 0..=130_u8, any_value()), 0..60)
}

/// A few bases, and prefixes near them: long common parts, nesting and neighbours are likely.
fn clustered4() -> impl Strategy<Value = Vec<(u32, u8, u32)>> {
    let near = (0..3_usize, any::<u16>(), 0..=16_u32, prop_oneof![Just(24_u8), Just(32), 8..=32_u8], any_value());
    (prop::array::uniform3(any::<u32>()), prop::collection::vec(near, 0..120)).prop_map(|(bases, near)| {
        near.into_iter()
            .map(|(base, noise, shift, length, value)| (bases[base] ^ u32::from(noise) << shift, length, value))
            .collect()
    })
}

fn clustered6() -> impl Strategy<Value = Vec<(u128, u8, u32)>> {
    let length = prop_oneof![Just(48_u8), Just(64), Just(128), 32..=128_u8, 60..=68_u8];
    let near = (0..3_usize, any::<u16>(), 0..=112_u32, length, any_value());
    (prop::array::uniform3(any::<u128>()), prop::collection::vec(near, 0..120)).prop_map(|(bases, near)| {
        near.into_iter()
            .map(|(base, noise, shift, length, value)| (bases[base] ^ u128::from(noise) << shift, length, value))
            .collect()
    })
}

/// What a node really has: /24s (or /64s) in a row, host routes in some, a default route, a hole or two.
fn dense4() -> impl Strategy<Value = Vec<(u32, u8, u32)>> {
    let hosts = prop::collection::vec((0..400_u32, any::<u8>()), 0..40);
    (any::<u32>(), 1..400_u32, 20..=28_u32, hosts, any::<bool>()).prop_map(|(base, count, length, hosts, default)| {
        let host_bits = 32 - length;
        let mut routes: Vec<_> = (0..count)
            .filter(|block| block % 7 != 3)
            .map(|block| (base.wrapping_add(block << host_bits), length as u8, block % 50))
            .collect();
        routes.extend(hosts.into_iter().map(|(block, host)| {
            (base.wrapping_add(block << host_bits).wrapping_add(u32::from(host)), 32, 100 + u32::from(host))
        }));
        routes.extend(default.then_some((0, 0, 999)));
        routes
    })
}

fn dense6() -> impl Strategy<Value = Vec<(u128, u8, u32)>> {
    let hosts = prop::collection::vec((0..400_u128, any::<u16>()), 0..40);
    (any::<u128>(), 1..400_u128, 48..=72_u32, hosts).prop_map(|(base, count, length, hosts)| {
        let host_bits = 128 - length;
        let mut routes: Vec<_> = (0..count)
            .filter(|block| block % 7 != 3)
            .map(|block| (base.wrapping_add(block << host_bits), length as u8, block as u32 % 50))
            .collect();
        routes.extend(hosts.into_iter().map(|(block, host)| {
            (base.wrapping_add(block << host_bits).wrapping_add(u128::from(host)), 128, u32::from(host))
        }));
        routes
    })
}

proptest! {
    #[test]
    fn scattered_ipv4_agrees(routes in scattered4(), others in prop::collection::vec(any::<u32>(), 20)) {
        check(&routes, others);
    }

    #[test]
    fn scattered_ipv6_agrees(routes in scattered6(), others in prop::collection::vec(any::<u128>(), 20)) {
        check(&routes, others);
    }

    #[test]
    fn clustered_ipv4_agrees(routes in clustered4(), others in prop::collection::vec(any::<u32>(), 5)) {
        check(&routes, others);
    }

    #[test]
    fn clustered_ipv6_agrees(routes in clustered6(), others in prop::collection::vec(any::<u128>(), 5)) {
        check(&routes, others);
    }

    #[test]
    fn dense_ipv4_agrees(routes in dense4(), others in prop::collection::vec(any::<u32>(), 5)) {
        check(&routes, others);
    }

    #[test]
    fn dense_ipv6_agrees(routes in dense6(), others in prop::collection::vec(any::<u128>(), 5)) {
        check(&routes, others);
    }
}

/// Tables large enough for every way of shaping nodes, checked at random addresses and next to random routes.
#[test]
fn large_tables_agree_with_a_linear_scan() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let routes4: Vec<(u32, u8, u32)> = (0..80_000)
        .map(|number| {
            let length = [8, 12, 16, 20, 22, 24, 24, 24, 26, 32][(random() % 10) as usize];
            let prefix =
                if random() % 2 == 0 { random() as u32 } else { v4("10.0.0.0") | random() as u32 & 0x003f_ffff };
            (prefix, length, number)
        })
        .collect();
    let routes6: Vec<(u128, u8, u32)> = (0..80_000)
        .map(|number| {
            let length = [32, 40, 48, 56, 60, 64, 64, 64, 96, 128][(random() % 10) as usize];
            let noise = u128::from(random()) << 64 | u128::from(random());
            let prefix = if random() % 2 == 0 { noise } else { v6("fd00:10::") | noise >> 40 };
            (prefix, length, number)
        })
        .collect();
    let (fib4, fib6) = (Fib::new(routes4.iter().copied()), Fib::new(routes6.iter().copied()));
    for _ in 0..100 {
        let near4 = routes4[random() as usize % routes4.len()].0 ^ (random() as u32 & 0x1ff);
        let near6 = routes6[random() as usize % routes6.len()].0 ^ u128::from(random() & 0x1ff) << (random() % 70);
        for address in [near4, random() as u32] {
            assert_eq!(fib4.lookup(address), longest(&routes4, address), "{address:x}");
        }
        assert_eq!(fib6.lookup(near6), longest(&routes6, near6), "{near6:x}");
    }
}
