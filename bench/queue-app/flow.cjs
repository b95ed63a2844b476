exports.POST = async () => new Response(null, { status: 404 });
