#pragma once
// What exchanges pages under a registration (the rows of the table in docs/coherence.md), and what an adapter then does:
// first without the loop, then with it. Runs over io_uring's registered buffers natively and over rdma_rxe in the rig.

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/unit/page_changes.h"
#include "transport/coherence/monitor.h"
#include "transport/memory_region.h"

namespace rbt::test {

/// A protection domain with an adapter behind it, which moves data through the newest registration made there.
class AdapterDomain : public transport::ProtectionDomain {
 public:
  /// The adapter writes `text` into memory. True: it completed with success. False, too, after a deregistration.
  [[nodiscard]] virtual bool write(std::size_t offset, const std::string& text) = 0;
  /// The adapter reads memory. Empty: it did not complete with success.
  [[nodiscard]] virtual std::string read(std::size_t offset, std::size_t size) = 0;
};

/// Without the loop: the adapter goes on with orphaned pages both ways, and says success.
void claim_stale(const PageChange& one, AdapterDomain& domain);
/// With it: no request begins, the old registration is gone, and a later use has the new pages.
void claim_coherent(const PageChange& one, AdapterDomain& domain, transport::coherence::Monitor& monitor,
                    const Clock& clock, int rounds);

/// A file in /dev/shm, mapped and registered, as a store would have it.
struct LeasedFile {
  LeasedFile(transport::coherence::Monitor& of, AdapterDomain& with);
  ~LeasedFile();
  LeasedFile(const LeasedFile&) = delete;
  LeasedFile& operator=(const LeasedFile&) = delete;
  /// Makes the region; not restored yet.
  void lease();
  [[nodiscard]] std::string in_file(std::size_t size) const;
  /// Runs `command` as another process; $f is the file.
  void shell(const std::string& command) const;
  [[nodiscard]] bool comes_back() const;
  transport::coherence::Monitor& monitor;
  AdapterDomain& domain;
  std::string path = "/dev/shm/rbt-coherence.XXXXXX";
  int fd = -1;
  std::optional<transport::RegisteredMemory> memory;
  std::optional<transport::coherence::MemoryRegistration> registration;
  std::unique_ptr<transport::coherence::Region> region;
};
/// Others who truncate and rewrite the file, without and with a lease.
void claim_stale_file(AdapterDomain& domain, transport::coherence::Monitor& monitor);
void claim_coherent_file(AdapterDomain& domain, transport::coherence::Monitor& monitor, int rounds);
/// The adapter's pages stay the memory's: without the loop, and with it, which hears of it or not.
void claim_harmless(const PageChange& one, AdapterDomain& domain, transport::coherence::Monitor& monitor,
                    const Clock& clock);
/// What no source sees: stale with the loop, too, and not heard of.
void claim_unseen(const PageChange& one, AdapterDomain& domain, transport::coherence::Monitor& monitor,
                  const Clock& clock);
/// None of that can be done to a memfd that is sealed as rbt seals its own.
void claim_sealed();

/// Hears whether it was told to close its connections.
struct Silent final : transport::coherence::UserHandler {
  void on_region_overdue(transport::coherence::Use& use) override;
  void on_region_fenced(transport::coherence::Use& use) override;
  void on_region_coherent(transport::coherence::Use& use) override;
  bool overdue = false;
};

[[nodiscard]] bool within(Duration limit, const std::function<bool()>& done);
[[nodiscard]] std::unique_ptr<transport::coherence::Monitor> start_monitor(const Clock& clock);
/// Not restored yet.
[[nodiscard]] std::unique_ptr<transport::coherence::Region> watched(transport::coherence::Monitor& monitor,
                                                                    transport::coherence::Registration& registration,
                                                                    const transport::MemorySpan& memory,
                                                                    const Clock& clock, Duration settle);

}  // namespace rbt::test
