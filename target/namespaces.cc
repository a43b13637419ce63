#include "target/namespaces.h"

#include <algorithm>
#include <tuple>

#include "target/core.h"
#include "target/reactor_context.h"

namespace rbt::target {

template <typename Body>
void Namespaces::on_reactor(ReactorContext& reactor, Body body) {
  if (core_.threads_running.load(std::memory_order_acquire)) {
    reactor.post([&reactor, body = std::move(body)]() mutable { body(reactor); });
  } else {
    body(reactor);
  }
}

// ---- add

Result<Nsid> Namespaces::add(const Subsystem& subsystem, std::unique_ptr<Store> store,
                             const NamespaceOptions& options) {
  const std::string spec = store->spec();
  const auto fail_with = [&](Error error) {
    return failure(std::move(error).within(fmt::format("adding namespace {} to {}", spec, subsystem.nqn().text())));
  };
  if (core_.on_own_thread())
    return fail_with(
        Error(ErrorKind::invalid_argument, "called on a thread of the target's, which would wait for itself"));
  if (core_.draining.load(std::memory_order_relaxed))
    return fail_with(Error(ErrorKind::in_use, "the target is shutting down"));
  if (!options.reservations.empty() && core_.own_reactors)
    if (auto started = core_.background.start(); !started) return fail_with(std::move(started.error()));
  KeptReservations kept = load_reservations(options.reservations, store->identity(), spec, core_.logger);
  auto reserved = reserve(subsystem, std::move(store), options.nsid, std::move(kept));
  if (!reserved) return fail_with(std::move(reserved.error()));
  Entry& entry = **reserved;
  const Nsid chosen = entry.ns.nsid();
  if (auto attached = attach_everywhere(entry.ns); !attached) {
    std::unique_ptr<Entry> taken;
    {
      const std::lock_guard lock(mutex_);
      by_identity_.erase(entry.ns.identity());
      taken = std::move(entries_.extract({subsystem.index(), chosen}).mapped());
      set_free(subsystem, chosen);
    }
    depart(std::move(taken), {});
    return fail_with(std::move(attached.error()));
  }
  {
    const std::lock_guard lock(mutex_);
    entry.adding = false;
  }
  tell_hosts(subsystem, chosen);
  // What the store said meanwhile went unheard. It may be gone again already.
  static_cast<void>(refresh(subsystem, chosen));
  return chosen;
}

Result<Namespaces::Entry*> Namespaces::reserve(const Subsystem& subsystem, std::unique_ptr<Store> store,
                                               std::optional<Nsid> nsid, KeptReservations kept) {
  const std::lock_guard lock(mutex_);
  // Hosts match namespaces by identity across subsystems, and refuse a second one of the same.
  if (const auto same = by_identity_.find(store->identity()); same != by_identity_.end())
    return failure(ErrorKind::in_use,
                   fmt::format("{} has the same NGUID and UUID; give one of them its own", same->second->who()));
  if (!nsid) nsid = free_nsid(subsystem);
  if (!nsid) return failure(ErrorKind::resource, fmt::format("all {} NSIDs are in use", Subsystem::kNsidMax));
  if (nsid->value() == 0 || nsid->value() > Subsystem::kNsidMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("NSID {}, allowed are 1 to {}", nsid->value(), Subsystem::kNsidMax));
  auto& entry = entries_[{subsystem.index(), *nsid}];
  if (entry != nullptr) return failure(ErrorKind::in_use, fmt::format("NSID {} is taken", nsid->value()));
  entry = std::make_unique<Entry>(*this, *nsid, subsystem, std::move(store), core_.reactors.size(), ++openings_);
  Namespace& ns = entry->ns;
  ns.set_reservations(
      std::make_shared<Reservations>(core_, subsystem, *nsid, ns.opening(), ns.identity(), ns.who(), std::move(kept)));
  by_identity_.emplace(ns.identity(), &ns);
  return entry.get();
}

std::optional<Nsid> Namespaces::free_nsid(const Subsystem& subsystem) {
  std::uint32_t& nsid = taken_below_.try_emplace(subsystem.index(), 1).first->second;
  for (auto at = entries_.lower_bound({subsystem.index(), Nsid(nsid)});
       at != entries_.end() && at->first == Key(subsystem.index(), Nsid(nsid)); ++at)
    ++nsid;
  return nsid <= Subsystem::kNsidMax ? std::optional(Nsid(nsid)) : std::nullopt;
}

void Namespaces::set_free(const Subsystem& subsystem, Nsid nsid) {
  if (const auto taken = taken_below_.find(subsystem.index()); taken != taken_below_.end())
    taken->second = std::min(taken->second, nsid.value());
}

// Registering memory takes its time: here, not on the reactors, for every domain that is in use by now.
Result<void> Namespaces::attach_everywhere(Namespace& ns) {
  std::vector<std::vector<Reach>> reaches(core_.reactors.size());
  core_.on_each_reactor(
      [&](ReactorContext& reactor) { reaches[reactor.index()] = reactor.namespaces(ns.subsystem()).reaches(); });
  for (const auto& of_reactor : reaches)
    for (const Reach& reach : of_reactor)
      if (auto prepared = ns.store().prepare(*reach.domain, reach.path_mtu); !prepared) return prepared;
  std::vector<Result<void>> attached(core_.reactors.size());
  core_.on_each_reactor([&](ReactorContext& reactor) { attached[reactor.index()] = reactor.attach(ns); });
  for (auto& result : attached)
    if (!result) return std::move(result);
  return {};
}

// ---- remove

Result<void> Namespaces::remove(const Subsystem& subsystem, Nsid nsid, NamespaceGone on_gone) {
  std::unique_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find({subsystem.index(), nsid});
    const auto fail_with = [&](ErrorKind kind, std::string_view why) {
      return failure(kind, fmt::format("removing namespace {} of {}: {}", nsid.value(), subsystem.nqn().text(), why));
    };
    if (found == entries_.end()) return fail_with(ErrorKind::not_found, "there is none of this NSID");
    if (found->second->adding) return fail_with(ErrorKind::in_use, "it is being added");
    entry = std::move(found->second);
    entries_.erase(found);
    by_identity_.erase(entry->ns.identity());
    set_free(subsystem, nsid);
  }
  depart(std::move(entry), std::move(on_gone));
  return {};
}

void Namespaces::depart(std::unique_ptr<Entry> entry, NamespaceGone on_gone) {
  leaving_.fetch_add(1, std::memory_order_relaxed);
  // Shared by messages to all reactors, far from the data path.
  const auto departure = std::make_shared<Departure>(std::move(entry), std::move(on_gone), core_.reactors.size());
  for (const auto& each : core_.reactors)
    on_reactor(*each, [this, departure](ReactorContext& reactor) {
      const Namespace& ns = departure->entry->ns;
      const Subsystem& subsystem = ns.subsystem();
      const Nsid nsid = ns.nsid();
      // The last one on either way sees all that the others did.
      const bool last = departure->admitting.fetch_sub(1, std::memory_order_acq_rel) == 1;
      reactor.detach(ns, [this, departure] {
        if (departure->using_it.fetch_sub(1, std::memory_order_acq_rel) == 1) finish(*departure);
      });
      if (last) tell_hosts(subsystem, nsid);
    });
}

void Namespaces::finish(Departure& departure) {
  auto store = departure.entry->ns.take_store();
  core_.logger.info("namespace {} ({}) of {} is gone", departure.entry->ns.nsid().value(), store->spec(),
                    departure.entry->ns.subsystem().nqn().text());
  leaving_.fetch_sub(1, std::memory_order_relaxed);
  if (departure.on_gone) departure.on_gone(std::move(store));
}

// ---- refresh

namespace {

bool same_blocks(const Geometry& a, const Geometry& b) noexcept {
  return a.block_shift.value() == b.block_shift.value();
}

bool same(const Geometry& a, const Geometry& b) noexcept {
  const auto all = [](const Geometry& g) {
    return std::tuple(g.block_shift.value(), g.blocks, g.read_only, g.write_cache, g.discard, g.write_zeroes,
                      g.discard_granularity, g.discard_reads_zero, g.optimal_io, g.transfer_max, g.atomic_write,
                      g.atomic_write_failing);
  };
  return all(a) == all(b);
}

}  // namespace

Result<void> Namespaces::refresh(const Subsystem& subsystem, Nsid nsid) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find({subsystem.index(), nsid});
  if (found == entries_.end())
    return failure(ErrorKind::not_found, fmt::format("refreshing namespace {} of {}: there is none of this NSID",
                                                     nsid.value(), subsystem.nqn().text()));
  Entry& entry = *found->second;
  if (entry.adding) return {};  // add() comes here when it is done
  entry.heard.store(false, std::memory_order_release);
  Namespace& ns = entry.ns;
  const Geometry now = ns.store().geometry();
  if (same(now, ns.geometry)) return {};
  if (!same_blocks(now, ns.geometry))
    return failure(
        ErrorKind::unsupported,
        fmt::format("{}: its blocks have {} bytes now, and had {}; hosts could not follow: remove it and add "
                    "it again",
                    ns.who(), now.block_shift.block_size(), ns.geometry.block_shift.block_size()));
  core_.logger.info("{}: {} blocks, {} before", ns.who(), now.blocks.value(), ns.geometry.blocks.value());
  ns.geometry = now;
  // In order even if two threads come here: still under the lock.
  const auto unaware = std::make_shared<std::atomic<std::size_t>>(core_.reactors.size());
  for (const auto& each : core_.reactors)
    on_reactor(*each, [this, unaware, &subsystem, nsid, now](ReactorContext& reactor) {
      reactor.set_geometry(subsystem, nsid, now);
      if (unaware->fetch_sub(1, std::memory_order_acq_rel) == 1) tell_hosts(subsystem, nsid);
    });
  return {};
}

void Namespaces::hear(Entry& entry) noexcept {
  const std::lock_guard lock(hearing_mutex_);
  if (!hearing_ || entry.heard.exchange(true, std::memory_order_acq_rel)) return;
  core_.reactors.front()->post([this, &subsystem = entry.ns.subsystem(), nsid = entry.ns.nsid()] {
    // Not found: it was removed meanwhile.
    if (auto refreshed = refresh(subsystem, nsid); !refreshed && refreshed.error().kind() != ErrorKind::not_found)
      core_.logger.error("{}", refreshed.error().message());
  });
}

void Namespaces::start() {
  {
    const std::lock_guard lock(hearing_mutex_);
    hearing_ = true;
  }
  for (const auto& [subsystem, nsid] : all())
    if (auto refreshed = refresh(*subsystem, nsid); !refreshed) core_.logger.error("{}", refreshed.error().message());
}

void Namespaces::close() {
  const std::lock_guard lock(hearing_mutex_);
  hearing_ = false;
}

// ---- everybody else

std::vector<std::pair<const Subsystem*, Nsid>> Namespaces::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<const Subsystem*, Nsid>> all;
  for (const auto& [key, entry] : entries_)
    all.emplace_back(&entry->ns.subsystem(), entry->ns.nsid());
  return all;
}

void Namespaces::tell_hosts(const Subsystem& subsystem, Nsid nsid) {
  if (!core_.serving.load(std::memory_order_acquire)) return;  // there are none
  for (const auto& each : core_.reactors)
    each->post([reactor = each.get(), &subsystem, nsid] { reactor->note_change(subsystem, nsid); });
}

void Namespaces::append_to(std::vector<NamespaceStatistics>& statistics) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, entry] : entries_) {
    const NamespaceTotals totals = entry->ns.totals();
    statistics.push_back({entry->ns.subsystem().nqn(), entry->ns.nsid(), entry->ns.store().spec(), totals.reads,
                          totals.writes, totals.other, totals.bytes_read, totals.bytes_written, totals.errors,
                          entry->ns.store().counts()});
  }
}

}  // namespace rbt::target
