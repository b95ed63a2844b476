// What the build of the app generates.
export declare function __wkf_entrypoint(request: Request): Promise<Response>;
