// Windows' ring: overlapped reads whose ends a completion port tells.
#include "ring.hpp"

#include <algorithm>
#include <cmath>
#include <io.h>
#include <vector>

#include "overlapped.hpp"

namespace haversack {

namespace {

constexpr size_t NUM_REQUESTS = 64;

struct Request : OVERLAPPED {
    HANDLE file;
    Read *read;
    DWORD refusal;  // the error with which Windows refused the request; 0: it took it
};

// A port takes the ends of reads of handles that are its own, so each file is opened once more.
struct File {
    int descriptor;
    HANDLE handle;
};

class CompletionPort : public Ring {
  public:
    explicit CompletionPort(HANDLE port) : port_(port), requests_(NUM_REQUESTS) {
        for (Request &request : requests_) free_.push_back(&request);
    }
    ~CompletionPort() override {
        for (const File &file : files_) CloseHandle(file.handle);
        CloseHandle(port_);
    }

    bool full() const override { return free_.empty(); }
    bool flush() override { return true; }
    void push(Read *read, int descriptor, int64_t start) override;
    void sleep(double most_s) override;
    void wake() override { PostQueuedCompletionStatus(port_, 0, 0, nullptr); }
    Read *pop(int64_t *result) override;

  private:
    HANDLE handle_of(int descriptor);
    void take_ends(DWORD most_ms);

    const HANDLE port_;
    std::vector<Request> requests_;
    std::vector<Request *> free_;
    std::vector<File> files_;
    std::vector<OVERLAPPED_ENTRY> ends_;  // told by the port and not popped yet
};

HANDLE CompletionPort::handle_of(int descriptor) {
    for (const File &file : files_)
        if (file.descriptor == descriptor) return file.handle;
    constexpr DWORD FLAGS = FILE_FLAG_OVERLAPPED | FILE_FLAG_NO_BUFFERING;
    constexpr DWORD SHARED = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    const auto given = reinterpret_cast<HANDLE>(_get_osfhandle(descriptor));
    const HANDLE handle = ReOpenFile(given, GENERIC_READ, SHARED, FLAGS);
    if (handle == INVALID_HANDLE_VALUE) return handle;
    files_.push_back({descriptor, handle});
    CreateIoCompletionPort(handle, port_, 0, 0);
    return handle;
}

void CompletionPort::push(Read *read, int descriptor, int64_t start) {
    Request *request = free_.back();
    free_.pop_back();
    static_cast<OVERLAPPED &>(*request) = placed_at(read->offset + start);
    request->file = handle_of(descriptor), request->read = read, request->refusal = 0;
    const auto length = static_cast<DWORD>(std::min(read->length - start, MOST_BYTES));
    if (ReadFile(request->file, read->room + start, length, nullptr, request)) return;
    const DWORD error = GetLastError();
    if (error == ERROR_IO_PENDING) return;
    request->refusal = error;  // the port does not hear of it
    PostQueuedCompletionStatus(port_, 0, 0, request);
}

void CompletionPort::take_ends(DWORD most_ms) {
    ends_.resize(NUM_REQUESTS);
    ULONG count = 0;
    const auto room = static_cast<ULONG>(ends_.size());
    const bool came = GetQueuedCompletionStatusEx(port_, ends_.data(), room, &count, most_ms, false);
    ends_.resize(came ? count : 0);
}

void CompletionPort::sleep(double most_s) {
    if (ends_.empty()) take_ends(static_cast<DWORD>(std::ceil(1000 * std::max(0.0, most_s))));
}

Read *CompletionPort::pop(int64_t *result) {
    if (ends_.empty()) take_ends(0);
    while (!ends_.empty()) {
        auto *request = static_cast<Request *>(ends_.back().lpOverlapped);
        ends_.pop_back();
        if (!request) continue;  // a `wake`
        DWORD count = 0, error = request->refusal;
        if (!error && !GetOverlappedResult(request->file, request, &count, false))
            error = GetLastError();
        *result = error ? -errno_of(error) : count;
        free_.push_back(request);
        return request->read;
    }
    return nullptr;
}

}  // namespace

std::unique_ptr<Ring> Ring::open() {
    const HANDLE port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, nullptr, 0, 1);
    return port ? std::make_unique<CompletionPort>(port) : nullptr;
}

}  // namespace haversack
